"""Options of launcher/plan.py."""

from dataclasses import dataclass, field

from ingot.launcher.config.pretrain import TrainConfig
from ingot.launcher.config.schema.types import PositiveFloat, Ranks, Size


@dataclass(frozen=True)
class Plan:
    """The devices and their speed. The defaults describe machines with eight H100."""

    ranks: Ranks = 8
    """Number of devices."""
    memory_gb: PositiveFloat = 80.0
    """Memory of a device, in 10^9 bytes."""
    devices_per_node: Ranks = 8
    """Devices of one machine; tensor ranks stay within it."""
    tflops: PositiveFloat = 400.0
    """Speed of a device in the matrix products of this model, in 10^12 FLOP per second: usually 40 to 60 % of the data
    sheet."""
    node_gb_per_second: PositiveFloat = 300.0
    """Bandwidth between devices of one machine, in 10^9 bytes per second and device."""
    network_gb_per_second: PositiveFloat = 40.0
    """Bandwidth between machines, in 10^9 bytes per second and device."""
    top: Size = 12
    """How many layouts to print."""


@dataclass(frozen=True)
class PlanConfig(TrainConfig):
    """A training run's configuration and the devices. Of the configuration only model, data and batch are used, and
    parallel.precision and parallel.offload; the other options of parallel are searched."""

    plan: Plan = field(default_factory=Plan)
