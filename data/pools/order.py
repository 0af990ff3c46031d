"""A caption's words in other orders: captions that only a reader of word order can tell from the right one.

Four ways, seeded by a name, so that the same caption of the same pair is always disturbed alike.
"""

import hashlib
import random
from collections.abc import Callable, Sequence

_TRIES = 20
Words = list[str]


def other_orders(words: Sequence[str], name: str) -> list[str]:
    """At most four captions of the same words, each another order and none the right one.

    Short or repetitive captions have fewer: what comes out equal is left out.
    """
    right, found = " ".join(words), dict[str, None]()
    for number, disturb in enumerate((_within_trigrams, _trigrams, _all, _neighbours)):
        seed = hashlib.sha256(f"{number} {name}".encode()).digest()
        found.update(dict.fromkeys(_other(list(words), disturb, random.Random(seed), {right, *found})))
    return list(found)


def _other(
    words: Words, disturb: Callable[[Words, random.Random], Words], draws: random.Random, taken: set[str]
) -> Words:
    for _ in range(_TRIES):
        caption = " ".join(disturb(words, draws))
        if caption not in taken:
            return [caption]
    return []


def _trigrams_of(words: Words) -> list[Words]:
    return [words[at : at + 3] for at in range(0, len(words), 3)]


def _within_trigrams(words: Words, draws: random.Random) -> Words:
    return [word for part in _trigrams_of(words) for word in draws.sample(part, len(part))]


def _trigrams(words: Words, draws: random.Random) -> Words:
    parts = _trigrams_of(words)
    return [word for part in draws.sample(parts, len(parts)) for word in part]


def _all(words: Words, draws: random.Random) -> Words:
    return draws.sample(words, len(words))


def _neighbours(words: Words, draws: random.Random) -> Words:
    """One pair of words that follow each other changes places."""
    at = draws.randrange(len(words) - 1)
    return [*words[:at], words[at + 1], words[at], *words[at + 2 :]]
