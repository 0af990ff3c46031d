"""Examples a report shows: the classes a model is worst at, and what two models find for the same queries.

Nothing is picked by hand: classes by their recall, queries by a hash of their name. Legend: Q samples.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from evaluation.curves import Where, tasks, title
from evaluation.images import Pictures
from evaluation.results import Results, Row
from evaluation.rows import Rows

Section = dict[str, Any]
_CLASSES, _WRONG_PICTURES, _QUERIES = 10, 3, 4
_MOST_TASKS = 4  # with pictures: a page of forty sets would weigh tens of megabytes
_LOOKED_AT = 400


def worst_classes(results: Results, label: str, against: str | None, pictures: Mapping[str, Pictures]) -> list[Section]:
    """Per zero-shot task: the classes with the lowest recall, what they are taken for, and pictures of it."""
    found = []
    for number, where in enumerate(tasks(results, "zero_shot")):
        row = _first(results, label, where)
        rows = results.read(label, row) if row else None
        if row is None or rows is None or "correct" not in rows.numbers or len(set(rows.labels)) < 2:
            continue
        other = _first(results, against, where) if against else None
        theirs = results.read(against, other) if against and other else None
        own = pictures.get(where[0]) if number < _MOST_TASKS else None
        found.append({
            "set": where[0], "split": where[1], "task": where[2], "where": title(where),
            "classes": classes_of(rows, theirs, own), "total": len(set(rows.labels)),
        })  # fmt: skip
    return found


def classes_of(rows: Rows, theirs: Rows | None, pictures: Pictures | None) -> list[Section]:
    """The worst classes, lowest recall first, larger ones first among equals; `low`, `high`: Wilson's 95 % interval."""
    samples: dict[str, list[int]] = defaultdict(list)
    for at, label in enumerate(rows.labels):
        samples[label].append(at)
    correct_Q = np.asarray(rows.numbers["correct"]) == 1
    order = sorted(samples, key=lambda name: (correct_Q[samples[name]].mean(), -len(samples[name]), name))
    before = _recalls(theirs) if theirs else {}
    found = []
    for name in order[:_CLASSES]:
        own, right = samples[name], int(correct_Q[samples[name]].sum())
        wrong = [at for at in own if not correct_Q[at]]
        interval = stats.binomtest(right, len(own)).proportion_ci(method="wilson")
        found.append({
            "name": name, "n": len(own), "recall": right / len(own), "low": float(interval.low),
            "high": float(interval.high), "before": before.get(name), "confusion": _confusion(rows, name, wrong),
            "pictures": _wrong_pictures(rows, wrong, pictures),
        })  # fmt: skip
    return found


def _confusion(rows: Rows, name: str, wrong: Sequence[int]) -> Section | None:
    """What the class is most often taken for; a tie with the right class is not a confusion with another."""
    taken = Counter(rows.predictions[at] for at in wrong if rows.predictions[at] != name)
    if not taken:
        return None
    count = max(taken.values())
    return {"name": min(other for other, number in taken.items() if number == count), "count": count}


def _recalls(rows: Rows) -> dict[str, float]:
    right, all_ = Counter[str](), Counter(rows.labels)
    for label, correct in zip(rows.labels, np.asarray(rows.numbers["correct"]).tolist(), strict=True):
        right[label] += int(correct == 1)
    return {label: right[label] / count for label, count in all_.items()}


def _wrong_pictures(rows: Rows, wrong: Sequence[int], pictures: Pictures | None) -> list[Section]:
    if pictures is None:
        return []
    shown = [at for at in wrong if pictures.may_show(rows.ids[at])]
    chosen = sorted(shown, key=lambda at: _hash(rows.ids[at]))[:_WRONG_PICTURES]
    images = pictures.data_uris((rows.ids[at] for at in chosen), side=64)
    return [
        {"uid": rows.ids[at], "caption": rows.predictions[at], "picture": images[rows.ids[at]]}
        for at in chosen if rows.ids[at] in images
    ]  # fmt: skip


def retrieved(results: Results, labels: Sequence[str], pictures: Mapping[str, Pictures]) -> list[Section]:
    """Per retrieval task: for a few queries of both directions, what each of these models finds first."""
    found = []
    for where in tasks(results, "retrieval")[:_MOST_TASKS]:
        own = pictures.get(where[0])
        if own is None:
            continue
        ways = {}
        for way in ("text_to_image", "image_to_text"):
            read = {label: _read(results, label, where, way) for label in labels}
            rows = {label: one for label, one in read.items() if one is not None}
            if rows:
                ways[way] = _queries(rows, way, own)
        if any(ways.values()):
            found.append({"where": title(where), "ways": ways})
    return found


def _queries(rows: Mapping[str, Rows], way: str, pictures: Pictures) -> list[Section]:
    """The first queries by hash whose pictures may all be shown."""
    first, *others = rows.values()
    common = set(first.ids).intersection(*(one.ids for one in others))
    at = {label: {sample: row for row, sample in enumerate(one.ids)} for label, one in rows.items()}
    chosen: list[str] = []
    for query in sorted(common, key=_hash)[:_LOOKED_AT]:
        seen = [query] if way == "image_to_text" else [one.predictions[at[label][query]] for label, one in rows.items()]
        if all(map(pictures.may_show, seen)):
            chosen.append(query)
        if len(chosen) == _QUERIES:
            break
    answers = {q: [_answer(label, one, at[label][q]) for label, one in rows.items()] for q in chosen}
    if way == "image_to_text":
        images = pictures.data_uris(chosen)
    else:
        images = pictures.data_uris(answer["text"] for own in answers.values() for answer in own)
    return [
        {
            "query": query, "label": first.labels[at[next(iter(rows))][query]], "picture": images.get(query),
            "answers": [answer | {"picture": images.get(answer["text"])} for answer in answers[query]],
        } for query in chosen
    ]  # fmt: skip


def _answer(label: str, rows: Rows, at: int) -> Section:
    rank = int(rows.numbers["rank"][at])
    return {"label": label, "text": rows.predictions[at], "rank": rank, "right": rank == 1}


def _read(results: Results, label: str, where: Where, way: str) -> Rows | None:
    row = _first(results, label, where, way)
    return results.read(label, row) if row else None


def _first(results: Results, label: str, where: Where, way: str = "") -> Row | None:
    rows = results.rows[label].values()
    return next(
        (r for r in rows if (r["set"], r["split"], r["task"], r["direction"]) == (*where, way)), None
    )  # fmt: skip


def _hash(sample: str) -> bytes:
    return hashlib.sha256(sample.encode()).digest()
