"""Items of two pictures and two captions: is each caption nearest its picture, and each picture its caption?

Winoground (CVPR 2022). text: both pictures prefer their own caption; image: both captions prefer their own picture
(what MMVP-VLM, CVPR 2024, counts); group: both. A comparison is won by more than rounding only, so equal scores win
none of the three: a constant model gets 0 with every item tied. Chance, 1/4, 1/4 and 1/6, is for scores that are random
and never equal: of the 24 orders of four scores 6, 6 and 4 win.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from data.errors import EvaluationError
from evaluation.metrics.base import Mean, Metric
from evaluation.metrics.selection import GroupMean
from evaluation.ranks import TIE_TOLERANCE
from evaluation.rows import Rows, group_ids
from evaluation.specs import PairedSelection
from evaluation.subject import Answer, Subject

NO_ITEM, NOT_TWO, NO_CAPTION, SEVERAL, EQUAL = (
    "no_item", "not_two_pictures", "no_caption", "several_captions", "equal_captions",
)  # fmt: skip
CHANCE = {"text_score": 1 / 4, "image_score": 1 / 4, "group_score": 1 / 6}
_BLOCK_ITEMS = 2048


class Item(NamedTuple):
    """Two pairs that are asked together."""

    name: str
    uids: tuple[str, str]
    captions: tuple[str, str]


def answer(spec: PairedSelection, subject: Subject) -> list[Answer]:
    """Four scores an item, three strict verdicts.

    Raises:
        EvaluationError: no item has two pictures with a caption each.
    """
    items, dropped = _items(spec, subject)
    if not items:
        reasons = ", ".join(f"{reason} {count}" for reason, count in Counter(dropped.values()).most_common())
        raise EvaluationError(
            f"paired_selection: no item of split {subject.part.name!r} has two pictures with a caption each ({reasons})"
        )
    found = [_verdicts(items[at : at + _BLOCK_ITEMS], subject) for at in range(0, len(items), _BLOCK_ITEMS)]
    numbers: dict[str, Any] = {name: np.concatenate([block[name] for block in found]) for name in found[0]}
    values = _values(spec, subject, items)
    if values:
        numbers["group"] = np.where([name != "" for name in values], group_ids(values), -1)
    rows = Rows(
        ids=[item.name for item in items], clusters=[subject.part.clusters[item.uids[0]] for item in items],
        labels=[" | ".join(item.captions) for item in items],
        predictions=["+".join(name for name in CHANCE if numbers[name][row]) or "none" for row in range(len(items))],
        numbers=numbers, dropped=dropped,
    )  # fmt: skip
    extra = {"values": _table(values, rows)} if values else {}
    return [Answer(rows, _metrics(spec, bool(values)), extra=extra)]


def _items(spec: PairedSelection, subject: Subject) -> tuple[list[Item], dict[str, str]]:
    part, captions = subject.part, subject.data.captions([spec.caption_source])
    values, members = subject.data.values(spec.item_field), defaultdict(list)
    for uid in part.uids:
        members[str(values[uid]) if uid in values else ""].append(uid)
    dropped = part.dropped | dict.fromkeys(members.pop("", []), NO_ITEM)
    items = []
    for name in sorted(members):
        reason = _problem(members[name], captions)
        if reason:
            dropped[name] = reason
        else:
            first, second = members[name]
            items.append(Item(name, (first, second), (captions[first][0], captions[second][0])))
    return items, dropped


def _problem(uids: Sequence[str], captions: Mapping[str, list[str]]) -> str:
    if len(uids) != 2:
        return NOT_TWO
    counts = [len(captions.get(uid, [])) for uid in uids]
    if counts != [1, 1]:
        return NO_CAPTION if 0 in counts else SEVERAL
    return EQUAL if captions[uids[0]] == captions[uids[1]] else ""


def _verdicts(items: Sequence[Item], subject: Subject) -> dict[str, Any]:
    """Columns of a block. Legend: B items, i picture, c caption."""
    size = len(items)
    images_BID = subject.data.image_features([uid for item in items for uid in item.uids]).reshape(size, 2, -1)
    texts_BCD = subject.data.texts([text for item in items for text in item.captions]).reshape(size, 2, -1)
    scores_BIC = np.einsum("bid,bcd->bic", images_BID, texts_BCD, dtype=np.float64)
    own_B2 = scores_BIC[:, (0, 1), (0, 1)]
    by_picture_B2 = own_B2 - scores_BIC[:, (0, 1), (1, 0)]  # own caption minus the other one
    by_caption_B2 = own_B2 - scores_BIC[:, (1, 0), (0, 1)]  # own picture minus the other one
    text_B, image_B = ((margin > TIE_TOLERANCE).all(axis=1) for margin in (by_picture_B2, by_caption_B2))
    margins_B4 = np.concatenate([by_picture_B2, by_caption_B2], axis=1)
    return {
        "text_score": text_B.astype(np.int64), "image_score": image_B.astype(np.int64),
        "group_score": (text_B & image_B).astype(np.int64), "correct": (text_B & image_B).astype(np.int64),
        "ties": (np.abs(margins_B4) <= TIE_TOLERANCE).sum(axis=1), "margin": margins_B4.min(axis=1),
    }  # fmt: skip


def _values(spec: PairedSelection, subject: Subject, items: Sequence[Item]) -> list[str]:
    if spec.macro_field is None:
        return []
    values = subject.data.values(spec.macro_field)
    return [str(values.get(item.uids[0], "")) for item in items]


def _table(values: Sequence[str], rows: Rows) -> dict[str, Any]:
    found = {}
    for name in sorted(set(values) - {""}):
        mask_Q = np.array([value == name for value in values])
        found[name] = {"n": int(mask_Q.sum())} | {s: float(rows.numbers[s][mask_Q].mean()) for s in CHANCE}
    return found


def _metrics(spec: PairedSelection, grouped: bool) -> list[Metric]:
    found: list[Metric] = [Mean(name, name, chance_value=chance) for name, chance in CHANCE.items()]
    if grouped:
        found += [
            GroupMean(f"macro_{spec.macro_field}_{name}", name, "group", chance_value=chance)
            for name, chance in CHANCE.items()
        ]
    return found
