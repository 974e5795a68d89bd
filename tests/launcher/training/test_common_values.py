"""Ranks that disagree about anything of a run are refused by name, before anything depends on it."""

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

import pytest
import torch.distributed as dist

from ingot.launcher.config.finetune import FinetuneConfig
from ingot.launcher.config.pretrain import OF_ONE_MACHINE, TrainConfig
from ingot.launcher.config.schema.options import Kind, options
from ingot.launcher.training.common_values import common_values, model_identity
from ingot.parallel.agreement import agree
from ingot.parallel.rendezvous import join_rendezvous
from tests.launcher.runs import ROOT, environment, write_config
from tests.ranks import free_port, run_ranks

CONFIGS: tuple[Any, ...] = (TrainConfig, FinetuneConfig)


def other(kind: Kind, value: Any) -> Any:
    """Another value of this kind."""
    if kind.is_record:
        required = {f.name: "x" for f in dataclasses.fields(kind.type) if f.default is dataclasses.MISSING}
        return kind.type(**{name: text for name, text in required.items() if name == "path"}, **_numbers(kind.type))
    if kind.type is Literal:
        return next(choice for choice in kind.choices if choice != value)
    if kind.type is list:
        return [*(value or []), other(kind.items[0], None)]
    if kind.type is tuple:
        return tuple(
            other(item, each) for item, each in zip(kind.items, value or [None] * len(kind.items), strict=True)
        )
    return {int: lambda: (value or 0) + 1, float: lambda: (value or 0) / 2 + 0.3, bool: lambda: not value}.get(
        kind.type, lambda: {"a": 1} if kind.type is dict else f"{value}x"
    )()


def _numbers(cls: type) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(cls)}
    return (
        {"step": 3, "weights": [1.0]}
        if names == {"step", "weights"}
        else ({"steps": 3, "global_size": 2} if names == {"steps", "global_size"} else {})
    )


def changed(config: Any, name: str, value: Any) -> Any:
    section, _, rest = name.partition(".")
    inner = changed(getattr(config, section), rest, value) if rest else value
    return dataclasses.replace(config, **{section: inner})


def cases() -> list[tuple[Any, str, Any]]:
    """Each option of each configuration that has no options below it, and another value of it."""
    found = []
    for cls in CONFIGS:
        config = cls()
        for option in options(cls):
            inside_null = option.name.startswith("model.rope_scaling.")  # null by default
            if option.name == "model.preset":  # in its place are the options that it sets
                continue
            if (option.section and not option.kind.optional) or inside_null:
                continue
            value: Any = config
            for part in option.name.split("."):
                value = getattr(value, part)
            found.append((config, option.name, other(option.kind, value)))
    return found


def compare_all() -> list[str]:
    """What this rank hears about each case, where rank 1 has the other value."""
    rank, heard = int(os.environ["RANK"]), []
    store = join_rendezvous(rank, 2, 60)
    for number, (config, name, value) in enumerate(cases()):
        own = changed(config, name, value) if rank == 1 else config
        try:
            agree(dist.PrefixStore(str(number), store), rank, 2, common_values(own, {}), 60)
            heard.append("")
        except ValueError as error:
            heard.append(str(error))
    store.add("done", 1)
    while rank == 0 and store.add("done", 0) < 2:  # it holds the store
        time.sleep(0.01)
    return heard


@pytest.mark.distributed
def test_every_option_that_differs_is_named_on_all_ranks():
    first, second = run_ranks(compare_all, 2)
    assert first == second
    for (_, name, _), message in zip(cases(), first, strict=True):
        if name in OF_ONE_MACHINE:
            assert message == "", name
        else:
            assert message.startswith(f"the ranks do not agree: {name}"), (name, message)
            assert " on rank 0" in message
            assert " on rank 1" in message
    assert set(OF_ONE_MACHINE) <= {name for _, name, _ in cases()}


def test_versions_sources_and_files_are_compared_too():
    values = common_values(TrainConfig(), {"the tokenizer": "abc"})
    assert values["the tokenizer"] == "abc"
    assert {"the version of torch", "the version of deepspeed", "the source of Ingot"} <= values.keys()


def test_a_model_is_known_by_its_description_and_the_sizes_of_its_weights(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"12")
    seen = {model_identity(tmp_path)}
    for name, content in (("config.json", "{ }"), ("model.safetensors", "123"), ("LATEST", "a"), ("notes.txt", "a")):
        (tmp_path / name).write_text(content)
        seen.add(model_identity(tmp_path))
    assert len(seen) == 4  # notes do not count


@pytest.mark.distributed
@pytest.mark.parametrize("different", [["--optimizer.learning_rate", "0.5"], ["--model.hidden_size", "64"]])
def test_two_processes_with_other_options_both_end_with_2(corpus, tmp_path, different):
    """Started one by one, as on two machines; the second option also decides how large what they exchange is."""
    config = write_config(tmp_path, corpus)
    world = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [
        subprocess.Popen(
            [sys.executable, str(ROOT / "launcher/pretrain.py"), "--config", str(config), *more],
            env=environment() | world | {"RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, more in enumerate([[], different])
    ]
    try:
        outputs = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [2, 2], outputs
    for _, errors in outputs:
        assert f"error: the ranks do not agree: {different[0][2:]} is " in errors, errors
        assert f"and {different[1]} on rank 1" in errors
        assert "Traceback" not in errors
    assert not Path(tmp_path / "runs").exists()
