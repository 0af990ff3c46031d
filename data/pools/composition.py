"""Pairs of compositional benchmarks, read from their authors' own files and folders of pictures.

`data.pools.layouts` says what becomes of an entry; here are the files, the pictures and the reasons to drop.
"""

import csv
import io
import posixpath
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any

from PIL import Image

from data import storage
from data.errors import ShardError
from data.pools import Dropped, Plan, Planned, layouts
from data.pools.layouts import Box, Entry
from data.pools.text import caption_problem, clean_json, is_writable_uid, parse_json
from data.shards import IMAGE_EXTENSIONS
from data.sources import extension_of, list_images
from data.specs import CompositionPool

_CARDS = {
    "sugar_crepe": "SugarCrepe (NeurIPS 2023), MIT; pictures: COCO 2017 validation",
    "aro_relation": "ARO, Visual Genome Relation (ICLR 2023), MIT; pictures: Visual Genome",
    "aro_attribution": "ARO, Visual Genome Attribution (ICLR 2023), MIT; pictures: Visual Genome",
    "caption_order": "Captions in other orders, after ARO's COCO and Flickr30k Order (ICLR 2023)",
    "winoground": "Winoground (CVPR 2022), Meta's research licence; pictures: Getty Images",
    "mmvp": "MMVP-VLM (CVPR 2024), licence not stated in its repository",
    "winogavil": "WinoGAViL (NeurIPS 2022), CC-BY-4.0",
}
_NOTES = {
    "aro_relation": [
        "The authors' notebook leaves relations that read alike both ways out of its mean; to do so, hold out their "
        "values of `relation` in the split stage."
    ],
    "caption_order": [
        "Four orders without a tagger of parts of speech: words within trigrams, trigrams, all words, neighbours "
        "swapped. ARO's first two instead shuffle nouns and adjectives, and all other words, by spaCy's tags."
    ],
    "winoground": ["Layout from the data set's card and code that reads it; the gated file itself was not at hand."],
    "mmvp": [
        "Layout from the authors' evaluation script, the file itself was not at hand. An item is two rows that follow "
        "each other; the statement stands after 'a photo of', as there."
    ],
}


Rows = Iterator[tuple[str, Any]]  # place in the file, what stands there
Reader = Callable[[Any], layouts.Entries]
_BAD = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError)


def plan(pool: CompositionPool, max_caption_bytes: int) -> Plan:
    """Plan the pairs of a benchmark; what an entry lacks is a reason to drop it.

    Raises:
        ShardError: the file is not what the layout says.
    """
    images = {name for name, _ in list_images(pool.images)}
    pairs: dict[str, Planned] = {}
    dropped = []
    for where, entry in _entries(pool):
        reason = entry if isinstance(entry, str) else _add(pairs, pool, entry, images, max_caption_bytes)
        if reason:
            dropped.append(Dropped("", where, reason))
    licence = _CARDS[pool.layout]
    card = {
        "title": licence.split(",")[0],
        "licence": licence,
        "layout": pool.layout,
        "notes": _NOTES.get(pool.layout, []),
    }
    return Plan(list(pairs.values()), dropped, card)


def _entries(pool: CompositionPool) -> Iterator[tuple[str, Entry | str]]:
    if pool.layout == "winogavil":
        yield from _pictures(pool)
        return
    category = pool.annotations.rsplit("/", 1)[-1].removesuffix(".json")
    readers: dict[str, tuple[Callable[[CompositionPool], Rows], Reader]] = {
        "sugar_crepe": (_numbered, partial(layouts.sugar_crepe, category)),
        "aro_relation": (_listed, partial(layouts.aro, "relation")),
        "aro_attribution": (_listed, partial(layouts.aro, "attributes")),
        "caption_order": (_listed, layouts.caption_order),
        "winoground": (_lines, layouts.winoground),
        "mmvp": (_questions, layouts.mmvp),
    }
    rows, read = readers[pool.layout]
    for where, row in rows(pool):
        try:
            found = list(read(row))
        except _BAD:
            found = ["bad_entry"]
        for entry in found:
            yield where if isinstance(entry, str) else f"{where}: {entry.image[:200]}", entry


def _pictures(pool: CompositionPool) -> Iterator[tuple[str, Entry | str]]:
    cues: dict[str, layouts.Cue] = {}
    for where, row in _table(pool, ("cue", "candidates", "associations")):
        try:
            cue = layouts.winogavil_cue(row)
        except _BAD:
            yield where, "bad_entry"
            continue
        if cue.item in cues:
            yield where, "duplicate_item"
        else:
            cues[cue.item] = cue
    for entry in layouts.winogavil_pictures(cues.values()):
        yield entry.image[:200], entry


def _add(
    pairs: dict[str, Planned], pool: CompositionPool, entry: Entry, images: Collection[str], max_caption_bytes: int
) -> str:
    """Add a pair; return "" or the reason why it cannot be used."""
    path = _path(entry.image, images)
    problem = _problem(entry, path, pairs, max_caption_bytes)
    if problem:
        return problem
    uri = storage.join(storage.normalise(pool.images), path)
    derive, ext = (None, extension_of(path)) if entry.box is None else (partial(cut, entry.box), "png")
    pairs[entry.uid] = Planned(entry.uid, uri, ext, path, entry.captions, clean_json(entry.meta), derive=derive)
    return ""


def _path(image: str, images: Collection[str]) -> str:
    """Name of the picture in the folder; empty if it is not there."""
    path = posixpath.normpath(image)
    names = (path, *(f"{path}.{extension}" for extension in sorted(IMAGE_EXTENSIONS)))
    return next((name for name in names if name in images), "")


def _problem(entry: Entry, path: str, pairs: Collection[str], max_caption_bytes: int) -> str:
    if not path:
        return "missing_image"
    if not is_writable_uid(entry.uid):
        return "bad_uid"
    if entry.uid in pairs:
        return "duplicate_uid"
    if entry.box is not None and not (entry.box[0] < entry.box[2] and entry.box[1] < entry.box[3]):
        return "empty_box"
    problems = (caption_problem(caption, max_caption_bytes) for caption in entry.captions.values())
    return next(filter(None, problems), "")


def cut(box: Box, content: bytes) -> bytes:
    """The part of a picture inside a box, as PNG; what lies outside the picture is black, as in ARO's own code."""
    sink = io.BytesIO()
    with Image.open(io.BytesIO(content)) as image:
        reach = 2 * max(image.size)  # a box far beyond the picture would be gigabytes of black
        if max(abs(edge) for edge in box) > reach:
            raise ValueError("box far outside the picture")
        image.convert("RGB").crop(box).save(sink, "PNG")
    return sink.getvalue()


def _parsed(pool: CompositionPool, kind: type) -> Any:
    try:
        found = parse_json(storage.read_bytes(pool.annotations))
    except ValueError as error:
        raise ShardError(
            f"pool.annotations: {pool.annotations} is not JSON ({error}); give the authors' file"
        ) from error
    if not isinstance(found, kind):
        expected = "an object of entries by number" if kind is dict else "a list of entries"
        raise ShardError(f"pool.annotations: {pool.annotations} is not {expected}, as {pool.layout} has it")
    return found


def _numbered(pool: CompositionPool) -> Rows:
    for number, entry in _parsed(pool, dict).items():
        yield f"entry {number[:100]}", (number, entry)


def _listed(pool: CompositionPool) -> Rows:
    for number, entry in enumerate(_parsed(pool, list)):
        yield f"entry {number}", (number, entry)


def _lines(pool: CompositionPool) -> Rows:
    for number, line in enumerate(storage.read_bytes(pool.annotations).split(b"\n")):
        if line.strip():
            try:
                yield f"line {number + 1}", (number, parse_json(line))
            except ValueError:
                yield f"line {number + 1}", (number, None)


def _questions(pool: CompositionPool) -> Rows:
    """Two rows that follow each other, under a header."""
    lines = _csv(pool)[1:]
    for number, at in enumerate(range(0, len(lines), 2)):
        yield f"rows {at + 1} and {at + 2}", (number, lines[at : at + 2])


def _table(pool: CompositionPool, needed: Sequence[str]) -> Rows:
    lines = _csv(pool)
    columns = lines[0] if lines else []
    missing = [name for name in needed if name not in columns]
    if missing:
        known = ", ".join(map(repr, columns)) or "nothing"
        raise ShardError(f"pool.annotations: {pool.annotations} has no column {missing[0]!r}, only {known}")
    for number, values in enumerate(lines[1:]):
        yield f"row {number + 1}", (number, dict(zip(columns, values, strict=False)))


def _csv(pool: CompositionPool) -> list[list[str]]:
    text = storage.read_bytes(pool.annotations).decode("utf-8-sig", "surrogateescape")
    try:
        return [line for line in csv.reader(io.StringIO(text, newline=""), strict=True) if line]
    except csv.Error as error:
        raise ShardError(f"pool.annotations: {pool.annotations} cannot be parsed as csv: {error}") from error
