"""The data card: one page and the same facts as JSON, of what curation kept, dropped and why.

Everything on the page comes from `CardFacts`; the page asks nothing of the network and runs no script.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data import storage
from data.curation.plain import as_json, one_line
from data.curation.thumbnails import LONGEST_CAPTION, Example

_TEMPLATES = Path(__file__).parent / "templates"
_LONGEST_NAME = 80
_PICTURES = ("data:image/png;base64,", "data:image/jpeg;base64,")


class Step(NamedTuple):
    """One step of the funnel: pairs that reach it, pairs it drops, and how many for which reason."""

    name: str
    pairs: int
    dropped: int
    reasons: dict[str, int] = {}  # noqa: RUF012 - never mutated


class Histogram(NamedTuple):
    """Pairs by a value: edges (B + 1, the last may be infinite), counts and, where known, those of them kept (B).

    `bounds` are the values from or up to which a filter lets pairs through.
    """

    name: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    kept: tuple[int, ...] = ()
    bounds: tuple[float, ...] = ()


class EntryCounts(NamedTuple):
    """Entries by the pairs that hold them, before balancing and after: edges 0, 1, 2, 4, 8 ... (B + 1)."""

    edges: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]


class TopEntry(NamedTuple):
    """A frequent entry: pairs that hold it before balancing and after, and its probability."""

    entry: str
    language: str
    before: int
    after: int
    p: float


class LanguageCount(NamedTuple):
    """Pairs with a caption in a language, before curation and after; t of its entries where balancing has one."""

    language: str
    before: int
    after: int
    t: int | None = None


class Duplicates(NamedTuple):
    """Groups of pairs that are alike, the pairs beyond one a group, and pairs by what links them."""

    groups: int
    redundant: int
    by_kind: dict[str, int]


class CardFacts(NamedTuple):
    """All that the card says; what is None or empty is not shown."""

    title: str
    splits: tuple[str, ...]  # that the selection was taken from
    caption_source: str
    steps: tuple[Step, ...]  # in order: the pairs of each are those that the one before let through
    filter_values: tuple[Histogram, ...] = ()
    t: int | None = None
    entry_counts: EntryCounts | None = None
    top_entries: tuple[TopEntry, ...] = ()
    languages: tuple[LanguageCount, ...] = ()
    picture_sides: Histogram | None = None  # shorter side, in pixels
    caption_words: Histogram | None = None
    duplicates: Duplicates | None = None
    protected: dict[str, int] = {}  # noqa: RUF012 - evaluation -> pairs that are like one of its pictures
    examples: tuple[Example, ...] = ()

    @property
    def pairs(self) -> int:
        """Pairs before the first step."""
        return self.steps[0].pairs if self.steps else 0

    @property
    def kept(self) -> int:
        """Pairs behind the last step."""
        return self.steps[-1].pairs - self.steps[-1].dropped if self.steps else 0


def write_card(out_uri: str, facts: CardFacts) -> None:
    """Write `card.json` and `card.html` below `out_uri`. Equal facts give equal bytes."""
    shown = _shown(facts)
    storage.write_json(storage.join(out_uri, "card.json"), card_json(shown))
    storage.write_bytes(storage.join(out_uri, "card.html"), card_html(shown).encode())


def card_json(facts: CardFacts) -> dict[str, Any]:
    """The facts without the bytes of pictures."""
    value: dict[str, Any] = as_json(facts)
    for example in value["examples"]:
        example["picture"] = example["picture"] is not None
    return value | {"pairs": facts.pairs, "kept": facts.kept}


def card_html(facts: CardFacts) -> str:
    """The page; whatever comes from data is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from data.curation import bars

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"count": "{:,}".format, "share": share, "words": words}
    environment.globals |= {
        "histogram": bars.histogram,
        "bin_names": bars.bin_names,
        "wide_bins": wide_bins,
        "WIDE": bars.WIDE,
    }
    return environment.get_template("card.html.j2").render(card=facts, groups=example_groups(facts.examples))


def _shown(facts: CardFacts) -> CardFacts:
    """The facts with every text from outside on one line and not longer than a page bears, and sound."""
    for before, after in zip(facts.steps, facts.steps[1:], strict=False):
        assert before.pairs - before.dropped == after.pairs, f"the funnel leaks before {after.name}"
    examples = [
        example._replace(
            uid=one_line(example.uid, _LONGEST_NAME), caption=one_line(example.caption, LONGEST_CAPTION),
            picture=None if example.withheld else example.picture,
        ) for example in facts.examples
    ]  # fmt: skip
    assert all(example.picture is None or example.picture.startswith(_PICTURES) for example in examples)
    entries = [top._replace(entry=one_line(top.entry, _LONGEST_NAME)) for top in facts.top_entries]
    return facts._replace(examples=tuple(examples), top_entries=tuple(entries))


def example_groups(examples: Sequence[Example]) -> dict[str, list[Example]]:
    """Examples by reason: the kept first, then in the order in which reasons come."""
    groups: dict[str, list[Example]] = {"": []} if any(not example.reason for example in examples) else {}
    for example in examples:
        groups.setdefault(example.reason, []).append(example)
    return groups


def wide_bins(counts: Sequence[int]) -> bool:
    """Whether counts differ so much that small ones would not be seen beside the largest."""
    seen = [count for count in counts if count]
    return bool(seen) and max(seen) > 200 * min(seen)


def share(part: float, whole: float) -> str:
    """A share in percent, with two places below 1 %."""
    value = 100 * part / whole if whole else 0.0
    return f"{value:.1f} %" if value >= 1 or value == 0 else f"{value:.2f} %"


def words(name: str) -> str:
    """A name of the code as words."""
    return name.replace("_", " ")
