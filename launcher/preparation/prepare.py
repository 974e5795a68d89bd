"""Prepares a corpus folder, in one process or several: what launcher/prepare.py does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ingot.data.sources.documents import VALIDATION
from ingot.data.writing.writer import sibling_path
from ingot.launcher.config.prepare import PrepareOptions, check
from ingot.launcher.preparation.pipeline import run_other_rank, run_rank_zero
from ingot.launcher.preparation.rank_coordinator import RankCoordinator


@dataclass
class Summary:
    """The result of `prepare`: the corpus folder, its manifest, what was skipped, and the seconds of each phase."""

    folder: Path
    manifest: dict
    skipped: str
    seconds: dict[str, float]
    reused: bool = False

    def __str__(self) -> str:
        lines = [f"corpus {self.folder} {'is up to date' if self.reused else 'is ready'}"]
        for name, split in self.manifest["splits"].items():
            ratio = split["num_tokens"] / max(1, split["text_bytes"])
            lines.append(
                f"  {name:<11}{split['num_documents']:>9,} documents {split['num_tokens']:>13,} tokens "
                f"{split['text_bytes']:>14,} bytes ({ratio:.3f} tokens per byte), "
                f"unigram entropy {split['unigram_entropy']:.4f} nats per token"
            )
        vocab_size = self.manifest["tokenizer"]["vocab_size"]
        lines.append(f"  vocabulary {vocab_size:,}; skipped or cut: {self.skipped or 'none'}")
        wanted = self.manifest.get("settings", {}).get("validation_fraction")
        if wanted and VALIDATION not in self.manifest["splits"]:
            lines.append(
                f"  there is no validation split, as no document was chosen for it: set validation_fraction, which is "
                f"{wanted}, higher, or name another corpus in data.validation when you train"
            )
        phases = ", ".join(f"{name} {value:.1f}" for name, value in self.seconds.items())
        lines.append(f"  {sum(self.seconds.values()):.1f} seconds ({phases})")
        return "\n".join(lines)


def prepare(options: PrepareOptions) -> Summary | None:
    """Make the corpus folder, or reuse it if it is up to date. Returns None on all ranks except rank 0.

    Raises ValueError and OSError for problems that a user can fix.
    """
    check(options)
    output = Path(options.output)
    ranks = RankCoordinator.from_environment(sibling_path(output, ".partial"), options.timeout_seconds)
    if ranks.rank:
        run_other_rank(options, ranks)
        return None
    outcome = run_rank_zero(options, ranks)
    return Summary(output, outcome.manifest, outcome.skipped, outcome.seconds, outcome.reused)
