"""What a rewrite must satisfy to be used. A small model invents and forgets; only what passes here reaches training.

Words are the relaxed tokens of the matcher. A content word is any word that is not neutral: neutral ones carry no fact
about the picture, or only say that it is one.
"""

from collections import Counter
from collections.abc import Iterable

from data.curation.match import tokens
from data.specs import RewriteChecks

REASONS = ("empty", "unchanged", "too_short", "too_long", "artefact", "lost_concept", "invented")
_FUNCTION_WORDS = """
    a an the this that these those it its there here which who whose of with in on at by to from for as and or
    is are was be being has have having s
"""
_PICTURE_WORDS = """
    picture photo photograph image icon emoji illustration drawing symbol sign graphic depiction representation view
    showing shows show shown depicting depicts depicted displaying displays displayed featuring features drawn
    represents representing called named
"""
FUNCTION = frozenset(_FUNCTION_WORDS.split())
NEUTRAL = FUNCTION | frozenset(_PICTURE_WORDS.split())
ARTEFACTS = ("=>", "->", "<|", "|>", "\ufffd", "http:", "https:")


def check(source: str, rewrite: str, checks: RewriteChecks) -> str:
    """Return "" for a rewrite that may be used, else the first reason it may not (REASONS)."""
    words = _words(rewrite)
    if not words:
        return "empty"
    if words == _words(source):
        return "unchanged"
    if len(words) < checks.min_words:
        return "too_short"
    if len(words) > checks.max_words:
        return "too_long"
    if _has_artefact(source, rewrite) or _repeats_itself(_words(source), words):
        return "artefact"
    lost, invented = compare(source, rewrite)
    if len(lost) > checks.max_lost:
        return "lost_concept"
    return "invented" if len(invented) > checks.max_invented else ""


def compare(source: str, rewrite: str) -> tuple[list[str], list[str]]:
    """Content words of the source that are gone, and words of the rewrite that have no ground in the source."""
    before, after = _words(source), _words(rewrite)
    lost = _missing(_content(before) or before, after)  # where all words are neutral, all of them count
    return lost, _missing(_content(after), before)


def _missing(words: Iterable[str], there: Iterable[str]) -> list[str]:
    """Distinct words no form of which is there."""
    known = {form for word in there for form in _forms(word)}
    return [word for word in dict.fromkeys(words) if known.isdisjoint(_forms(word))]


def _forms(word: str) -> set[str]:
    """The word and what it may be the English plural of: horses, boxes, cherries."""
    forms = {word}
    if len(word) > 3 and word.endswith("s"):
        forms.add(word[:-1])
        if word.endswith("es"):
            forms.add(word[:-2])
        if word.endswith("ies"):
            forms.add(word[:-3] + "y")
    return forms


def _words(text: str) -> list[str]:
    return [token for token in tokens(text, "relaxed") if any(char.isalnum() for char in token)]


def _content(words: Iterable[str]) -> list[str]:
    return [word for word in words if word not in NEUTRAL]


def _has_artefact(source: str, rewrite: str) -> bool:
    unprintable = any(not char.isprintable() and char not in source for char in rewrite)
    return unprintable or any(mark in rewrite and mark not in source for mark in ARTEFACTS)


def _repeats_itself(before: Iterable[str], after: Iterable[str]) -> bool:
    """A word comes again that came once, or not at all, in the source: small models loop."""
    known = Counter(before)
    return any(times > max(1, known[word]) for word, times in Counter(after).items() if word not in FUNCTION)
