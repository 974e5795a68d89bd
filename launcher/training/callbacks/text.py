"""Records as lines for people."""

from typing import Any

from ingot.launcher.training.callbacks.callback import Kind


def format_record(kind: Kind, record: dict[str, Any]) -> str:
    """A record as a line of log.txt and of the terminal."""
    start = f"step {record['step']}  "
    if kind == "train":
        return start + (
            f"loss {record['loss']:.4f}  lr {record['learning_rate']:.2e}  norm {record['grad_norm']:.2f}  "
            f"{record['tokens_per_second']:,.0f} tokens/s"
        )
    if kind == "eval":
        scores = {name: value for name, value in record.items() if isinstance(value, float) and name != "seconds"}
        return start + "validation: " + "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
    if kind == "checkpoint":
        return start + f"checkpoint {record['path']}, training waited {record['seconds']:.2f} s"
    more = {name: value for name, value in record.items() if name not in ("step", "event")}
    return start + record["event"] + "".join(f"  {name} {value}" for name, value in more.items())
