"""Files of prompts."""

from ingot.data.sources.text_files import parse_json, read_text
from ingot.data.tasks.instruction import messages_of


def read_prompts(path: str) -> list[dict]:
    """The records of a file, each with its "prompt", or with the "messages" of a chat.

    Each line of a text file is a prompt; blank lines are skipped. Each line of a .jsonl file is a JSON object, and its
    other keys are kept.

    Raises:
        ValueError: the file has no prompts or is not UTF-8, or a line of a .jsonl file is not an object with a text
            "prompt" or a list of messages.
        OSError: the file cannot be read.
    """
    lines = read_text(path, may_be_empty=True).split("\n")
    numbered = [(number, line.removesuffix("\r")) for number, line in enumerate(lines, start=1) if line.strip()]
    if not numbered:
        raise ValueError(f"{path} has no prompts; write one on each line")
    if not path.lower().endswith(".jsonl"):
        return [{"prompt": line} for _, line in numbered]
    return [_record(f"{path}, line {number}", line) for number, line in numbered]


def _record(where: str, line: str) -> dict:
    record = parse_json(line, where)
    if isinstance(record, dict) and "messages" in record:
        return {**record, "messages": messages_of(record["messages"], where)}
    if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
        raise ValueError(f'{where} is not a JSON object with a text "prompt" or a list of "messages"')
    return record
