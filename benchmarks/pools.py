"""Pools to curate, of any size: img2dataset's tars of small distinct pictures and captions as the web has them.

    python -m benchmarks.pools FOLDER [--pairs 100000] [--shards 10] [--seed 0] [--no-pictures]

Captions are words and bigrams as often as Zipf's law has them, in the case and punctuation of alt texts, a tenth of
them not English; 2 % come again in many shards, as do 2 % of the pictures and their lightly changed copies. A pair
takes 2 kB: a header and a block each for the picture and its json. Equal arguments give equal bytes.
"""

import argparse
import json
import tarfile
from collections.abc import Iterator
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import simplejpeg
from wordfreq import top_n_list

_UNITS = 20_000  # words and bigrams of a language
_BIGRAM_EVERY = 4  # of English units
_LANGUAGES, _LANGUAGE_SHARES = ("en", "de", "es", "ru", "ja"), (0.9, 0.03, 0.03, 0.02, 0.02)
_UNSPACED = ("ja",)
_FORMS = (
    "{}", "{}", "{}", "{}.", "{}!", "{}, {n}", "The {}", "{} - stock photo", "IMG_{n}.JPG {}", '"{}"',
    "{} | {n} x 60 cm", "{} (c) 20{n}", "{} &amp; more", "#{n}: {}",
)  # fmt: skip
_NSFW, _NSFW_SHARES = ("UNLIKELY", "UNSURE", "NSFW"), (0.94, 0.05, 0.01)
_SIDE, _CELLS, _QUALITY = 24, 8, 35  # 8 x 8 random greys: a perceptual hash of their own, about 490 bytes
_REPEATED_FRACTION = 0.02
_STOCK_OF = 100  # pairs of the pool to one caption and picture that come again
_STOCK_SEED = 1 << 31

Random = np.random.Generator
Greys = npt.NDArray[np.uint8]


class Stock(NamedTuple):
    """Captions and pictures (N, 8, 8) that come again, anywhere in the pool."""

    captions: list[str]
    greys: Greys


class Vocabulary(NamedTuple):
    """Units of each language, commonest first, and the probability of a unit up to each rank."""

    units: dict[str, list[str]]
    cumulative: npt.NDArray[np.float64]


def vocabulary() -> Vocabulary:
    """Words of five languages (package wordfreq), English with bigrams among them (package symspellpy)."""
    units = {language: top_n_list(language, _UNITS) for language in _LANGUAGES}
    bigrams = _bigrams(_UNITS // _BIGRAM_EVERY)
    english = iter(units["en"])
    units["en"] = [
        bigrams[rank // _BIGRAM_EVERY] if rank % _BIGRAM_EVERY == _BIGRAM_EVERY - 1 else next(english)
        for rank in range(_UNITS)
    ]
    weights = 1 / (np.arange(_UNITS) + 2.7)
    return Vocabulary(units, np.cumsum(weights / weights.sum()))


def _bigrams(count: int) -> list[str]:
    text = resources.files("symspellpy").joinpath("frequency_bigramdictionary_en_243_342.txt").read_text("utf-8-sig")
    rows = [line.rsplit(" ", 1) for line in text.splitlines()]
    return [pair for pair, _ in sorted(rows, key=lambda row: -int(row[1]))[:count]]


def write_captions(random: Random, words: Vocabulary, count: int) -> list[str]:
    """Captions of 1 to 14 units."""
    languages = random.choice(len(_LANGUAGES), count, p=_LANGUAGE_SHARES).tolist()
    lengths = random.integers(1, 15, count)
    units = np.searchsorted(words.cumulative, random.random(int(lengths.sum())) * words.cumulative[-1]).tolist()
    ends = np.cumsum(lengths).tolist()
    forms = random.integers(0, len(_FORMS), count).tolist()
    cases, numbers = random.integers(0, 8, count).tolist(), random.integers(10, 100, count).tolist()
    found, start = [], 0
    for language, end, form, case, number in zip(languages, ends, forms, cases, numbers, strict=True):
        known = words.units[_LANGUAGES[language]]
        gap = "" if _LANGUAGES[language] in _UNSPACED else " "
        text = gap.join([known[unit] for unit in units[start:end]])
        found.append(_FORMS[form].format(_cased(text, case), n=number))
        start = end
    return found


def _cased(text: str, case: int) -> str:
    return {0: text.capitalize, 1: text.capitalize, 2: text.title, 3: text.upper}.get(case, lambda: text)()


def write_pool(folder: str, captions: int, shards: int, seed: int, pictures: bool = True) -> None:
    """Write a pool of so many captions, each with a picture of its own; without `pictures` all have one picture."""
    words, stock_random = vocabulary(), np.random.default_rng((seed, _STOCK_SEED))
    repeated = max(1, captions // _STOCK_OF)
    stock = Stock(write_captions(stock_random, words, repeated), _greys(stock_random, repeated))
    Path(folder).mkdir(parents=True, exist_ok=True)
    edges = np.linspace(0, captions, shards + 1).astype(int).tolist()
    for number, (start, end) in enumerate(pairwise(edges)):
        random = np.random.default_rng((seed, number))
        with Path(folder, f"{number:05d}.tar").open("wb", buffering=1 << 20) as tar:
            for index, (picture, document) in enumerate(_pairs(random, words, stock, end - start, pictures)):
                uid = f"{number:05d}{index:07d}"
                document["key"], document["url"] = uid, f"https://host{index % 97}.example/{uid}.jpg"
                _add(tar, f"{uid}.jpg", picture)
                _add(tar, f"{uid}.json", json.dumps(document, ensure_ascii=False).encode())
            tar.write(bytes(2 * tarfile.BLOCKSIZE))


def _pairs(
    random: Random, words: Vocabulary, stock: Stock, count: int, pictures: bool
) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield pictures and their img2dataset documents."""
    texts = write_captions(random, words, count)
    for row in np.flatnonzero(random.random(count) < _REPEATED_FRACTION).tolist():
        again = stock.captions[random.integers(len(stock.captions))]
        texts[row] = again if random.random() < 0.5 else f"{again} photo"
    flags = random.choice(_NSFW, count, p=_NSFW_SHARES).tolist()
    scores = random.normal(0.3, 0.04, count).round(4).tolist()
    files = _pictures(random, stock, count) if pictures else (_jpeg(stock.greys[0]) for _ in range(count))
    for picture, text, flag, score in zip(files, texts, flags, scores, strict=True):
        yield picture, {"caption": text, "status": "success", "NSFW": flag, "similarity": score}


def _pictures(random: Random, stock: Stock, count: int) -> Iterator[bytes]:
    """Yield JPEG files, a few of them those of the stock, or those with less contrast."""
    kinds = random.random(count).tolist()
    for kind, greys in zip(kinds, _greys(random, count), strict=True):
        if kind < _REPEATED_FRACTION:
            again = stock.greys[random.integers(len(stock.greys))]
            yield _jpeg(again if kind < _REPEATED_FRACTION / 2 else (again * 0.9 + 12).astype(np.uint8))
        else:
            yield _jpeg(greys)


def _greys(random: Random, count: int) -> Greys:
    return random.integers(0, 256, (count, _CELLS, _CELLS), dtype=np.uint8)


def _jpeg(greys: Greys) -> bytes:
    times = _SIDE // _CELLS
    image_HW1 = np.ascontiguousarray(greys.repeat(times, 0).repeat(times, 1)[:, :, None])
    content: bytes = simplejpeg.encode_jpeg(image_HW1, _QUALITY, "GRAY", "GRAY")
    return content


def _add(tar: Any, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.write(info.tobuf(tarfile.USTAR_FORMAT))
    tar.write(content)
    tar.write(bytes(-len(content) % tarfile.BLOCKSIZE))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--shards", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-pictures", action="store_true", help="one picture for all: when only captions count")
    options = parser.parse_args()
    write_pool(options.folder, options.pairs, options.shards, options.seed, not options.no_pictures)
    size = sum(path.stat().st_size for path in Path(options.folder).glob("*.tar"))
    print(f"{options.pairs} pairs in {options.shards} tars, {size / 1e6:,.0f} MB: {options.folder}")
