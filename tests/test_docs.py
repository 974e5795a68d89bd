"""What the documentation says exists: links, files, commands and their options; and prose is not wrapped."""

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from ingot.launcher import checkpoint
from ingot.launcher.config import parser
from ingot.launcher.config.reference import COMMANDS
from ingot.launcher.config.schema.options import options

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FILES = r"(?:launcher|model|data|parallel|ingot|configs|docs|tests|benchmarks)/[\w./*-]*[\w*]"
OLD_NAMES = ("CHANGELOG.md", "configuration.md")  # they list what no longer exists


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def id_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def code_blocks_out(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


LAUNCHERS = r"(?:python|torchrun [^#]*?|deepspeed(?: --num_gpus \d+)?)"


def commands_in(text: str) -> list[list[str]]:
    """The words of each indented command; a line that ends with a backslash goes on in the next."""
    found = []
    for line in re.sub(r"\\\n *", " ", text).splitlines():
        if match := re.match(rf"    {LAUNCHERS} launcher/(\w+)\.py (.*)", line):
            found.append([match[1], *shlex.split(match[2], comments=True)])
    return found


COMMAND_LINES = [(id_of(page), words) for page in PAGES for words in commands_in(text_of(page))]


@pytest.mark.parametrize("page", PAGES, ids=id_of)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", code_blocks_out(text_of(page))):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in OLD_NAMES], ids=id_of)
def test_files_that_are_named_exist(page):
    for name in re.findall(rf"(?<![\w/.]){FILES}", text_of(page)):
        if re.search(r"\.(py|yaml|sh|md)$", name) or name.endswith("/"):
            assert list(ROOT.glob(name)), name


@pytest.mark.parametrize(("page", "words"), COMMAND_LINES, ids=[f"{page}: {words[0]}" for page, words in COMMAND_LINES])
def test_a_command_is_one(page, words, monkeypatch):
    monkeypatch.chdir(ROOT)
    command, *arguments = words
    if "..." in arguments or command == "torchrun" or (command, arguments[:1]) in PREPARE:
        return
    if command == "checkpoint":
        checkpoint.parser().parse_args(arguments)
        return
    for number, word in enumerate(arguments):
        if word in ("mine.yaml", "new.yaml", "run.yaml", "FILE"):
            arguments[number] = "configs/demo.yaml"
    arguments = [word.replace("RANKS", "8") for word in arguments]
    parser.parse(COMMANDS[command], arguments, "")


PREPARE = [("prepare", ["verify"]), ("prepare", ["index"])]


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in OLD_NAMES], ids=id_of)
def test_options_that_are_named_exist(page):
    known = {option.name for cls in COMMANDS.values() for option in options(cls)}
    sections = {name.split(".")[0] for name in known if "." in name}
    for section, name in re.findall(r"`(?:--)?([a-z]+)\.([a-z_]+)\b(?![.(/])", text_of(page)):
        if section in sections and name not in ("py", "yaml", "json", "jsonl", "tsv", "sh", "txt", "md", "model"):
            assert f"{section}.{name}" in known, f"{section}.{name}"


def is_prose(line: str) -> bool:
    return bool(line) and not re.match(r"(?:[#|>]|    |\s*(?:[-*]|\d+\.) )", line)


def is_item(line: str) -> bool:
    return bool(re.match(r"\s*(?:[-*]|\d+\.) ", line))


@pytest.mark.parametrize("page", PAGES, ids=id_of)
def test_a_paragraph_is_one_line(page):
    lines = code_blocks_out(text_of(page)).splitlines()
    for line, following in pairwise(lines):
        assert not (is_prose(following) and (is_prose(line) or is_item(line))), f"{line}\n{following}"
