"""Probes: a head fitted on labelled pairs of one split, tuned on another, asked on the scored one; full or few-shot.

Legend: N pairs to fit on, S to choose on, Q pictures asked, C classes, D embedding, B block.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from data.errors import EvaluationError
from data.features import Floats
from evaluation import specs
from evaluation.heads.base import METHOD_SCALE, Chosen, Head
from evaluation.metrics.base import Mean, Metric
from evaluation.metrics.ranked import zero_shot_metrics
from evaluation.rows import Doubles, Ints, Rows
from evaluation.subject import Answer, Labelled, Subject
from evaluation.tasks.zero_shot import controls, ranked_rows

ZERO_SHOT, NEIGHBOURS, SHUFFLED = "zero_shot", "nearest_neighbours", "shuffled_labels"
_CROPPED = "cropped"  # views of this name are a head's training views


def answer(spec: specs.Probe, subject: Subject) -> list[Answer]:
    """The head's answer; beside it zero-shot, k-NN, the majority class, and the head on shuffled labels.

    The labels of both splits are shuffled, each within itself: with few classes a shuffle maps some of them right, and
    true labels to choose by would find the candidate that gains by it (24 % measured where chance is 20 %). A head that
    adds to zero-shot falls to somewhere between chance and zero-shot, others to chance; with few classes that holds
    over shuffles, not for each.

    Raises:
        EvaluationError: several classes a pair, nothing or one class to learn from, or a split that is scored.
    """
    probe = _Probe(spec, subject)
    zero_shot = ranked_rows(probe.tested, probe.zero_shot_blocks(), subject.logit_scale)
    majority = controls(probe.tested, zero_shot)[0]
    answers = [
        probe.answer(spec.head),
        Answer(probe.at_every_shot(zero_shot), probe.metrics(), ZERO_SHOT),
        Answer(
            probe.at_every_shot(majority.rows), probe.metrics() if spec.shots else majority.metrics, majority.baseline
        ),
        probe.answer(spec.head, SHUFFLED),
    ]  # fmt: skip
    if spec.head.head != NEIGHBOURS:
        answers.append(probe.answer(specs.NearestNeighbours(), NEIGHBOURS))
    return answers


class Fitted(NamedTuple):
    """A head that has learned, and what it chose."""

    head: Head
    chosen: Chosen


class _Labels(NamedTuple):
    """Classes of the pairs to fit on (N,) and to choose on (S,)."""

    fit: Ints
    select: Ints


class _Probe:
    """The splits of one probe, and every way it learns from them."""

    def __init__(self, spec: specs.Probe, subject: Subject) -> None:
        if spec.fit == spec.select:
            raise EvaluationError(
                f"select: {spec.select!r} is also what the head fits on; choose hyper-parameters on another split"
            )
        self.spec, self.data = spec, subject.data
        self.tested = subject.tested(spec.prompts)
        self.fit, left_out_fit = subject.fitting_labelled(spec.fit, spec.prompts)
        self.select, left_out_select = subject.fitting_labelled(spec.select, spec.prompts)
        for part in (self.tested, self.fit, self.select):
            _require_one_class(part, spec.prompts.field)
        self._left_out = left_out_fit + left_out_select
        self._views = ["", *self._cropped_views()] if spec.augmented else [""]
        self._classes_CD = self.data.class_features(spec.prompts)
        self._select_SD = self.data.image_features(self.select.uids)

    def zero_shot_blocks(self) -> Iterator[Floats]:
        """Cosines (B, C) of the pictures asked."""
        return (images_BD @ self._classes_CD.T for images_BD in self.data.image_blocks(self.tested.uids))

    def metrics(self) -> list[Metric]:
        """Metrics of a full probe, or one a number of shots."""
        if not self.spec.shots:
            return zero_shot_metrics(len(self.tested.classes))
        chance = 1 / len(self.tested.classes)
        return [Mean(f"top1_at_{shots}", f"correct_{shots}", chance_value=chance) for shots in self.spec.shots]

    def at_every_shot(self, rows: Rows) -> Rows:
        """Rows of what needs no shots, as if it had been asked at every number of them."""
        columns = {f"correct_{shots}": rows.numbers["correct"].astype(np.float64) for shots in self.spec.shots}
        return replace(rows, numbers={**rows.numbers, **columns})

    def answer(self, head: specs.Head, baseline: str = "") -> Answer:
        """A head that learned from the fit split, asked on the pictures that are scored."""
        if self.spec.shots:
            rows, chosen, extra = self._few_shot(head, baseline == SHUFFLED)
        else:
            labels = self._labels(0, baseline == SHUFFLED)
            fitted = self._fitted(head, np.arange(len(self.fit.uids)), labels, refit=True)
            rows, chosen, extra = self._rows(fitted.head), dict(fitted.chosen), dict[str, Any]()
            extra["candidates"] = chosen.pop("candidates")
        return Answer(rows, self.metrics(), baseline, self._what_was_used() | chosen, extra)

    def _few_shot(self, spec: specs.Head, shuffled: bool) -> tuple[Rows, dict[str, Any], dict[str, Any]]:
        """Mean of correct over draws, by picture and number of shots; other columns are of the most shots, first draw.

        Nothing is fitted again on the select split: that would be more shots.
        """
        shots, chosen = self.spec.shots, dict[str, Any]()
        correct: dict[int, list[Doubles]] = {k: [] for k in shots}
        ties_Q, shown = np.zeros(len(self.tested.uids), np.int64), None
        for draw in range(self.spec.draws):
            labels = self._labels(draw, shuffled)
            place_N = shot_places(self.fit.uids, labels.fit, self.spec.seed, draw)
            for k in shots:
                fitted = self._fitted(spec, np.flatnonzero(place_N < k), labels, refit=False)
                rows = self._rows(fitted.head)
                correct[k].append(rows.numbers["correct"].astype(np.float64))
                ties_Q = np.maximum(ties_Q, rows.numbers["ties"])
                for name, value in fitted.chosen.items():
                    if name != "candidates":
                        chosen.setdefault(f"{name}_at_{k}", []).append(value)
                if draw == 0 and k == max(shots):
                    shown = rows
        assert shown is not None
        columns = {f"correct_{k}": np.mean(found, axis=0) for k, found in correct.items()}
        by_draw = {f"top1_at_{k}": [float(one.mean()) for one in found] for k, found in correct.items()}
        rows = replace(shown, numbers={**shown.numbers, "ties": ties_Q, **columns})
        return rows, self._what_was_drawn() | chosen, {"by_draw": by_draw}

    def _labels(self, draw: int, shuffled: bool) -> _Labels:
        labels = _Labels(self.fit.labels, self.select.labels)
        if not shuffled:
            return labels
        random = np.random.default_rng([self.spec.seed % (1 << 32), draw])
        return _Labels(random.permutation(labels.fit), random.permutation(labels.select))

    def _fitted(self, spec: specs.Head, pairs: Ints, labels: _Labels, refit: bool) -> Fitted:
        """A head that learned from these rows of the fit split, in every view."""
        uids = [self.fit.uids[row] for row in pairs.tolist()]
        images = np.concatenate([self.data.image_features(uids, view) for view in self._views])
        views, head = len(self._views), spec.build()
        chosen = head.fit(
            images, np.tile(labels.fit[pairs], views), self._classes_CD, (self._select_SD, labels.select), METHOD_SCALE,
            pictures_N=np.tile(np.arange(len(uids)), views), refit=refit,
        )  # fmt: skip
        return Fitted(head, chosen)

    def _rows(self, head: Head) -> Rows:
        blocks = (head.logits(images_BD) for images_BD in self.data.image_blocks(self.tested.uids))
        return ranked_rows(self.tested, blocks, 1.0, tolerance=head.tolerance)

    def _what_was_used(self) -> dict[str, Any]:
        known_Q = np.isin(self.tested.labels, self.fit.labels)
        used = {
            "fit_on": self.spec.fit, "fit_pairs": len(self.fit.uids), "chosen_on": self.spec.select,
            "select_pairs": len(self.select.uids), "left_out_scored_pictures": self._left_out,
            "scored_classes_without_fit_pair": len(np.unique(self.tested.labels[~known_Q])),
            "scored_pairs_of_such_classes": int((~known_Q).sum()),
        }  # fmt: skip
        return used | ({"views": len(self._views)} if self.spec.augmented else {})

    def _what_was_drawn(self) -> dict[str, Any]:
        counts_C = np.bincount(self.fit.labels)
        fewer = {
            f"classes_with_fewer_than_{k}": int(((counts_C > 0) & (counts_C < k)).sum()) for k in self.spec.shots
        }  # fmt: skip
        return {"draws": self.spec.draws, "seed": self.spec.seed} | fewer

    def _cropped_views(self) -> list[str]:
        known = () if self.data.views is None else self.data.views.views
        found = [name for name in known if name.startswith(_CROPPED)]
        if not found:
            raise EvaluationError(
                f"augmented: {self.data.name} has no view whose name starts with {_CROPPED!r}; embed some with "
                f"`Cropped` and name that feature set as `views` (views are {', '.join(known) or 'none'})"
            )
        return found


def shot_places(uids: Sequence[str], labels_N: Ints, seed: int, draw: int) -> Ints:
    """Place (N,) of each pair among those of its class, by a hash of (seed, draw, uid): k shots are places below k.

    So shots do not depend on the order of pairs, and those of a smaller number are among those of a larger one.
    """
    hashes_N = [hashlib.blake2b(f"{seed}/{draw}/{uid}".encode(), digest_size=8).digest() for uid in uids]
    order_N = np.lexsort((np.frombuffer(b"".join(hashes_N), ">u8"), labels_N))
    sorted_N = labels_N[order_N]
    place_N = np.empty(len(uids), np.int64)
    place_N[order_N] = np.arange(len(uids)) - np.searchsorted(sorted_N, sorted_N)
    return place_N


def _require_one_class(part: Labelled, field: str) -> None:
    if part.truth is not None:
        raise EvaluationError(
            f"prompts.field: {field!r} has lists of classes in split {part.part.name!r}; "
            "a probe needs one class a pair, zero_shot scores several"
        )
