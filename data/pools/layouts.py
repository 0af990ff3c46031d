"""Entries of compositional benchmarks' own files, as pairs: right and wrong captions, items, answers.

| layout | file of the authors | pairs |
|--|--|--|
| sugar_crepe | `<category>.json`: number -> filename, caption, negative_caption | alt, negative; `category` |
| aro_relation | `visual_genome_relation.json`: box, true_caption, false_caption, relation_name | the box; `relation` |
| aro_attribution | `visual_genome_attribution.json`: the same with two attributes | the box; `attributes` |
| caption_order | Karpathy's `coco_karpathy_test.json`: image, caption (a list) | a pair a caption; 4 in other orders |
| winoground | `examples.jsonl`: id, image_0, image_1, caption_0, caption_1, tags | two pairs an `item`, by `side` |
| mmvp | `Questions.csv`: id, pattern, statement; two rows an item | two pairs an `item`; `pattern` |
| winogavil | `winogavil_dataset.csv`: ID, cue, candidates, associations (JSON) | a pair a picture, its items in lists |

Several texts about one picture are as many pairs of that picture. A reader raises KeyError, TypeError or ValueError for
an entry that is not what its layout says.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from data.pools.order import other_orders
from data.pools.text import parse_json

_MOST_WORDS = 30  # ARO cuts longer captions off; here such captions are left out
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels


class Entry(NamedTuple):
    """A pair as a file describes it; `image` is relative to the folder of pictures, with or without an extension."""

    uid: str
    image: str
    captions: dict[str, str]
    meta: dict[str, Any]
    box: Box | None = None


Entries = Iterator[Entry | str]  # a string is the reason why there is no pair


def sugar_crepe(category: str, row: tuple[str, Mapping[str, Any]]) -> Entries:
    """One picture, one wrong caption; the category is the file's name."""
    number, entry = row
    captions = {"alt": _text(entry["caption"]), "negative": _text(entry["negative_caption"])}
    yield Entry(f"{category}-{number}", _text(entry["filename"]), captions, {"category": category})


def aro(field: str, row: tuple[int, Mapping[str, Any]]) -> Entries:
    """One part of a picture, one wrong caption; `field` is `relation` or `attributes`."""
    number, entry = row
    left, top, width, height = (int(entry[f"bbox_{edge}"]) for edge in "xywh")
    captions = {"alt": _text(entry["true_caption"]), "negative": _text(entry["false_caption"])}
    names = [entry["relation_name"]] if field == "relation" else _texts(entry["attributes"])[:2]
    box = (left, top, left + width, top + height)
    meta = {field: "_".join(map(_text, names)), "box": list(box)}
    yield Entry(f"{field}-{number}", _text(entry["image_path"]), captions, meta, box)


def caption_order(row: tuple[int, Mapping[str, Any]]) -> Entries:
    """A picture for each of its captions, with the same words in other orders."""
    number, entry = row
    image = _text(entry["image"])
    for place, caption in enumerate(_texts(entry["caption"])):
        words, uid = caption.split(), f"order-{number}-{place}"
        wrong = other_orders(words, uid) if 1 < len(words) <= _MOST_WORDS else []
        if wrong:
            names = ["negative", *(f"negative{n}" for n in range(2, len(wrong) + 1))]
            captions = {"alt": " ".join(words), **dict(zip(names, wrong, strict=True))}
            yield Entry(uid, image, captions, {"image": number})
        else:
            yield "too_many_words" if len(words) > _MOST_WORDS else "no_other_order"


def winoground(row: tuple[int, Mapping[str, Any]]) -> Entries:
    """Two pictures with a caption each."""
    _, entry = row
    item = str(int(entry["id"]))
    tags = {name: entry[name] for name in ("tag", "secondary_tag", "collapsed_tag") if entry.get(name)}
    for side in (0, 1):
        image, caption = _text(entry[f"image_{side}"]), _text(entry[f"caption_{side}"])
        yield Entry(f"winoground-{item}-{side}", image, {"alt": caption}, {"item": item, "side": side, **tags})


def mmvp(row: tuple[int, Sequence[Sequence[str]]]) -> Entries:
    """Two rows: two pictures with a statement each. The authors' script looks for both in the first one's folder."""
    number, (first, second) = row
    pattern = first[1].strip()
    for side, (question, _, statement) in enumerate((first, second)):
        meta = {"item": str(number), "side": side, "pattern": pattern}
        captions = {"alt": f"a photo of {statement.strip()}"}
        yield Entry(f"mmvp-{int(question)}", f"{pattern}/{int(question)}", captions, meta)


class Cue(NamedTuple):
    """One item of WinoGAViL."""

    item: str
    cue: str
    candidates: list[str]
    answers: list[str]


def winogavil_cue(row: tuple[int, Mapping[str, str]]) -> Cue:
    """Read a row; candidates are names of pictures."""
    number, entry = row
    candidates, answers = (_texts(parse_json(entry[name].encode())) for name in ("candidates", "associations"))
    if len(set(candidates)) != len(candidates) or not set(answers) <= set(candidates):
        raise ValueError("a candidate twice, or an answer that is none")
    return Cue(entry.get("ID", "").strip() or str(number), _text(entry["cue"]), candidates, answers)


def winogavil_pictures(cues: Iterable[Cue]) -> Iterator[Entry]:
    """One pair a picture, with all items that it is a candidate of."""
    asked: dict[str, list[Cue]] = defaultdict(list)
    for cue in cues:
        for name in cue.candidates:
            asked[name].append(cue)
    for name, own in sorted(asked.items()):
        meta = {
            "item": [cue.item for cue in own], "cue": [cue.cue for cue in own],
            "is_answer": [name in cue.answers for cue in own], "candidates": [len(cue.candidates) for cue in own],
        }  # fmt: skip
        safe = re.sub(r"[^0-9A-Za-z-]", "_", name)
        suffix = "" if safe == name else f"-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        yield Entry(f"winogavil-{safe[:100]}{suffix}", name, {}, meta)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value


def _texts(value: Any) -> list[str]:
    return [_text(one) for one in (value if isinstance(value, list) else [value])]
