"""Packages are found, and stand under one name: launcher/ of a clone is installed as ingot.launcher."""

from setuptools import find_packages, setup

ROOMS = ("launcher", "model", "data", "parallel")

found = find_packages(include=[pattern for room in ROOMS for pattern in (room, f"{room}.*")])
setup(
    packages=["ingot", *(f"ingot.{name}" for name in found)],
    package_dir={"ingot": "ingot", **{f"ingot.{room}": room for room in ROOMS}},
)
