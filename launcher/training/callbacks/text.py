"""Records as lines for people."""

from datetime import timedelta
from typing import Any

from ingot.launcher.training.callbacks.callback import Kind


def format_record(kind: Kind, record: dict[str, Any], steps: int) -> str:
    """A record as a line of log.txt and of the terminal.

    Args:
        steps: optimizer steps of the run.
    """
    start = f"step {record['step']}  "
    if kind == "train":
        left = (steps - record["step"]) * record["step_seconds"]
        return (
            f"step {record['step']}/{steps} ({record['step'] / steps:.0%})  loss {record['loss']:.4f}  "
            f"lr {record['learning_rate']:.2e}  norm {record['grad_norm']:.2f}  {speed(record)}  "
            f"left {timedelta(seconds=round(left))}"
        )
    if kind == "eval":
        scores = {name: value for name, value in record.items() if isinstance(value, float) and name != "seconds"}
        return start + "validation: " + "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
    if kind == "checkpoint":
        return start + f"checkpoint {record['path']}, training waited {record['seconds']:.2f} s"
    more = {name: value for name, value in record.items() if name not in ("step", "event")}
    return start + record["event"] + "".join(f"  {name} {value}" for name, value in more.items())


def speed(record: dict[str, Any]) -> str:
    """Tokens per second, and of each device its use (MFU), or TFLOP/s where its peak is not known."""
    text = f"{record['tokens_per_second']:,.0f} tokens/s"
    if record["mfu"] is not None:
        return f"{text}, MFU {record['mfu']:.1%}"
    return f"{text}, {record['tflops_per_device']:.3g} TFLOP/s"
