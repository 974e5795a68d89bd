"""The progress of a run."""

from dataclasses import asdict, dataclass, field


@dataclass
class Progress:
    """The progress of a run. Together with the weights and the configuration, it is the whole state of the run."""

    step: int = 0
    """Optimizer steps done."""
    cursor: int = 0
    """Slots of the data order that these steps have read."""
    tokens: int = 0
    """Tokens of these steps."""
    substituted: int = 0
    """Sequences that replaced damaged ones."""
    quarantine: list[tuple[str, int]] = field(default_factory=list)
    """Damaged data that are not read any more: (sha256 of a shard, bundle); see data/corpus/quarantine.py."""

    def to_manifest(self) -> dict:
        """What a checkpoint's manifest says of it; the step stands there by itself."""
        return {name: value for name, value in asdict(self).items() if name != "step"}
