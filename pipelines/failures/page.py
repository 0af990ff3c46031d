"""A post-mortem as one HTML page that needs nothing else, and as text of at most 100 columns."""

import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipelines.failures.postmortem import PostMortem

_WIDTH = 98
_HERE = Path(__file__).parent
_STYLE = _HERE.parents[1] / "evaluation" / "templates"


def as_html(page: PostMortem) -> str:
    """The page. Everything that was read somewhere is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([_HERE, _STYLE]), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("postmortem.html.j2").render(page=page)


def as_text(page: PostMortem) -> str:
    """The same for a terminal or a mail."""
    return "\n".join(_lines(page)) + "\n"


def _lines(page: PostMortem) -> Iterator[str]:
    yield from (page.title, "=" * min(len(page.title), _WIDTH), *_wrapped(page.verdict), "")
    for what, command in page.commands:
        yield f"{what}:"
        yield from _command(command)
    yield from _table("Where", page.about)
    yield from _block("Evidence", [f"- {note}" for note in page.notes])
    yield from _block("Traceback", page.traceback)
    for name, lines in page.outputs.items():
        yield from _block(f"Last lines: {name}", lines)
    yield from _block("Last events", page.events)
    yield from _table("Resources when it failed", page.resources)
    changes = [f"{path}: {old} -> {new}" for path, old, new in page.changes] or ["no recipe field differs"]
    versions = [f"{name}: {old} -> {new}" for name, old, new in page.version_changes]
    same = page.compared.startswith("no earlier")
    yield from _block("Changed since the last good run", [page.compared, *([] if same else [*changes, *versions])])
    yield from _table("Place", page.place)
    yield from _table("Versions", page.versions)
    yield from _block("Log", [page.log])


def _command(command: str) -> Iterator[str]:
    """A command in lines that a shell reads as one; only a space between words is broken."""
    line = "  "
    for word in re.findall(r"(?:[^\s'\"]|'[^']*'|\"[^\"]*\")+", command):
        if len(line) + len(word) > _WIDTH - 2 and line.strip():
            yield f"{line.rstrip()} \\"
            line = "    "
        line += f"{word} "
    yield line.rstrip()


def _block(heading: str, lines: Iterable[str]) -> Iterator[str]:
    shown = [part for line in lines for part in _wrapped(line)]
    if shown:
        yield from ("", heading, "-" * len(heading), *shown)


def _table(heading: str, rows: list[tuple[str, str]]) -> Iterator[str]:
    width = min(34, max((len(name) for name, _ in rows), default=0))
    lines = []
    for name, value in rows:
        first, *rest = _wrapped(value, _WIDTH - width - 2) or [""]
        lines += [f"{name:<{width}}  {first}", *(f"{'':<{width}}  {line}" for line in rest)]
    if lines:
        yield from ("", heading, "-" * len(heading), *lines)


def _wrapped(line: str, width: int = _WIDTH) -> list[str]:
    """A line in pieces that fit; a long word is broken, an indent is kept."""
    indent = line[: len(line) - len(line.lstrip())][: width // 2]
    return textwrap.wrap(
        line, width, subsequent_indent=indent, replace_whitespace=False, drop_whitespace=True, break_on_hyphens=False,
        expand_tabs=True,
    ) or [""]  # fmt: skip
