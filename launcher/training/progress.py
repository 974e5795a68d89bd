"""How far a run is."""

from dataclasses import dataclass, field


@dataclass
class Progress:
    """How far a run is. With the weights and the configuration, this is the whole state of a run."""

    step: int = 0
    """Optimizer steps that are done."""
    cursor: int = 0
    """Slots of the data order that these steps have consumed."""
    tokens: int = 0
    """Tokens of these steps."""
    substituted: int = 0
    """Sequences that took the place of damaged ones."""
    quarantine: list[tuple[str, int]] = field(default_factory=list)
    """Data that are not read any more; see data/corpus/quarantine.py."""
