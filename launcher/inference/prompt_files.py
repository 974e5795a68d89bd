"""Where the texts to continue come from: the command line, or a file."""

from ingot.data.sources.text_files import parse_json, read_text


def read_prompts(path: str) -> list[dict]:
    """The records of a file, each with its "prompt": the lines of a text file that are not blank, or, of a .jsonl file,
    objects whose other keys stay beside it.

    Raises:
        ValueError: a file without prompts, or that is no UTF-8; a line that is no object with a text "prompt".
        OSError: a file that cannot be read.
    """
    lines = read_text(path, may_be_empty=True).split("\n")
    numbered = [(number, line.removesuffix("\r")) for number, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise ValueError(f"{path} holds no prompt; write one a line")
    if not path.lower().endswith(".jsonl"):
        return [{"prompt": line} for _, line in numbered]
    return [_record(f"{path}, line {number}", line) for number, line in numbered]


def _record(place: str, line: str) -> dict:
    record = parse_json(line, place)
    if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
        raise ValueError(f'{place} is no object with a text "prompt"')
    return record
