"""The end of what a process wrote to its output, for the page of what failed; without the secrets it may have shown."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

MOST_LINES = 40
_TAIL_BYTES = 64 << 10
_LONGEST_LINE = 2000
_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
_KEY_ID = "AWS_ACCESS_KEY_ID"
_SHORTEST_SECRET = 6  # shorter values stand in many an innocent line
_IN_URL = re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")
_BEARER = re.compile(r"(?i)(?<=bearer )[\w.~+/=-]{8,}")
_RAY_MARKS = (":job_id:", ":actor_name:", ":task_name:")  # by which Ray tells its workers' lines apart
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f]")


def redacted(text: str, environment: Mapping[str, str] | None = None) -> str:
    """The text without the values of variables whose names speak of secrets, and without passwords in URLs."""
    values = os.environ if environment is None else environment
    for secret in sorted({v for name, v in values.items() if _is_secret(name, v)}, key=len, reverse=True):
        text = text.replace(secret, "***")
    return _BEARER.sub("***", _IN_URL.sub("***", text))


def _is_secret(name: str, value: str) -> bool:
    """A short value is none, nor a key's id that is a word: without `clipworks` no path or command would be whole."""
    is_word = name == _KEY_ID and value.isalpha()
    return bool(_SECRET_NAME.search(name)) and len(value) >= _SHORTEST_SECRET and not is_word


def tail_lines(path: Path, most: int = MOST_LINES) -> list[str]:
    """The last lines of a text file, cleaned of colours and secrets; none where it cannot be read."""
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - _TAIL_BYTES))
            content = stream.read()
    except OSError:  # it is gone, or of another machine: what there is to tell is told without it
        return []
    lines = content.decode("utf-8", "replace").splitlines()
    return clean(lines[1:] if size > _TAIL_BYTES else lines, most)


def clean(lines: Iterable[str], most: int = MOST_LINES) -> list[str]:
    """The last lines that say something, without colours and secrets, each of a length that can be shown."""
    said = [redacted(_CONTROL.sub("", line.rstrip().rpartition("\r")[2]))[:_LONGEST_LINE] for line in lines]
    return [line for line in said if line.strip() and not line.startswith(_RAY_MARKS)][-most:]


def output_files() -> list[Path]:
    """The files that this process' output goes to; none where it is a pipe or a terminal."""
    found = []
    for number in (1, 2):
        link = Path(f"/proc/self/fd/{number}")
        if link.is_symlink() and link.is_file():
            found.append(link.resolve())
    return list(dict.fromkeys(found))
