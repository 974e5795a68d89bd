"""Writes docs/configuration.md: every option of every command, from the types.

python -m ingot.launcher.config.reference
"""

from collections.abc import Iterator
from dataclasses import MISSING, is_dataclass
from pathlib import Path

from ingot.launcher.config import aliases
from ingot.launcher.config.classify import ClassifyOptions
from ingot.launcher.config.evaluate import EvaluateOptions
from ingot.launcher.config.export import ExportOptions
from ingot.launcher.config.finetune import FinetuneConfig
from ingot.launcher.config.generate import GenerateOptions
from ingot.launcher.config.images import ImageOptions
from ingot.launcher.config.plan import PlanConfig
from ingot.launcher.config.predict import PredictOptions
from ingot.launcher.config.prepare import PrepareOptions
from ingot.launcher.config.pretrain import TrainConfig
from ingot.launcher.config.schema.options import Option, options, written

COMMANDS: dict[str, type] = {
    "pretrain": TrainConfig,
    "finetune": FinetuneConfig,
    "prepare": PrepareOptions,
    "generate": GenerateOptions,
    "evaluate": EvaluateOptions,
    "predict": PredictOptions,
    "classify": ClassifyOptions,
    "export": ExportOptions,
    "images": ImageOptions,
    "plan": PlanConfig,
}
PATH = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
INTRODUCTION = """# Configuration reference

This page is generated from the types of the options: `python -m ingot.launcher.config.reference` writes it. Do not edit it by hand.

Every command reads options from YAML files and from the command line: `--config FILE` and `--SECTION.OPTION VALUE`. Both can be given more than once; the later one wins. A list takes several words (`--task.text_columns question context`) or YAML (`--task.text_columns "[question, context]"`), and `--OPTION+ VALUE` adds to it. `--print_config` prints the whole configuration and stops.

YAML is read strictly: an unknown option, a key that is given twice, or a value of the wrong type or range is an error, and all errors of a configuration are reported together. A value without quotes is read as the type of its option: `1e5` is a whole number where one is wanted, and `1:30` is never a number. Lists of records accept paths: `data.train: corpora/mine` is `data.train: [{path: corpora/mine}]`.
"""  # noqa: E501  # a paragraph is a line in docs/


def reference() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    shared: dict[tuple, str] = {}
    for command, cls in COMMANDS.items():
        parts.append(f"## {command}\n")
        top = [option for option in options(cls) if "." not in option.name and not option.section]
        if top:
            parts.append(_table([row for option in top for row in _with_items(option)]))
        for section in (option for option in options(cls) if "." not in option.name and option.section):
            inside = [option for option in options(cls) if option.name.startswith(f"{section.name}.")]
            rows = [row for option in inside for row in _with_items(option)]
            said = (section.name, *map(_row, rows))
            if first := shared.get(said):
                parts.append(f"### {command}: {section.name}\n\nAs for [{first}](#{first}-{section.name}).\n")
            else:
                shared[said] = command
                parts.append(f"### {command}: {section.name}\n\n{section.meaning}\n\n{_table(rows)}")
    parts.append("## Old names\n")
    parts.append(
        "Names of before are still read in files, on the command line and in checkpoints, with a notice. A value of "
        "`model.window` becomes one larger in a causal model, because `model.sliding_window` counts the token itself.\n"
    )
    label, conll_label = aliases.CONLL_LABEL
    pairs = [*aliases.OPTIONS.items(), (f"{label} (a number)", conll_label)]
    for name, values in aliases.VALUES.items():
        pairs += [(f"{name}: {old}", f"{name}: {new}") for old, new in values.items()]
    lines = ["| old | new |", "|---|---|", *(f"| `{old}` | `{new}` |" for old, new in pairs)]
    parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _with_items(option: Option) -> Iterator[Option]:
    """An option, and where it is a list of records those of a record."""
    yield option
    if option.kind.type is list and option.kind.items[0].is_record:
        yield from options(option.kind.items[0].type, f"{option.name}[].")


def _table(rows: list[Option]) -> str:
    lines = ["| option | type | default | meaning |", "|---|---|---|---|", *map(_row, rows)]
    return "\n".join(lines) + "\n"


def _row(option: Option) -> str:
    if option.default is MISSING:
        default = "required"
    elif is_dataclass(option.default):
        default = ""
    else:
        default = f"`{written(option.default)}`"
    cells = (f"`{option.name}`", str(option.kind), default, option.meaning)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def main() -> None:
    PATH.write_text(reference(), encoding="utf-8")
    print(f"wrote {PATH}")


if __name__ == "__main__":
    main()
