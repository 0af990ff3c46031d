"""How the two modalities of a model lie to each other: gap, alignment of pairs, uniformity, and a picture of it.

Legend: Q pairs, D embedding.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from data.errors import EvaluationError
from data.features import Floats
from evaluation.metrics.base import Mean, Metric
from evaluation.metrics.geometry import Gap, Uniformity, principal_components
from evaluation.rows import Doubles, Rows
from evaluation.specs import Geometry
from evaluation.subject import Answer, Subject, first_by_hash

NO_CAPTION, NOT_SAMPLED = "no_caption", "beyond_the_first_by_hash"
# a gap's interval needs the sums of every cluster: 200 MB for so many of 512 numbers
_MOST_PAIRS, _SHOWN = 50_000, 200


def answer(spec: Geometry, subject: Subject) -> list[Answer]:
    """Gap, alignment and both uniformities of pairs; beside it the alignment of pictures with others' captions.

    A pair with several captions of the source is asked with the first.

    Raises:
        EvaluationError: fewer than two pairs have a caption of the source.
    """
    part, captions = subject.part, subject.data.captions([spec.caption_source])
    known = [uid for uid in part.uids if captions.get(uid)]
    if len(known) < 2:
        raise EvaluationError(
            f"split {part.name!r}: {len(known)} pairs have a caption of {spec.caption_source!r}, geometry needs two; "
            "use another source"
        )
    uids = first_by_hash(known, _MOST_PAIRS)
    kept = set(uids)
    dropped = {uid: NOT_SAMPLED if captions.get(uid) else NO_CAPTION for uid in part.uids if uid not in kept}
    images_QD = subject.data.image_features(uids)
    texts_QD = subject.data.texts([captions[uid][0] for uid in uids])
    rows = Rows(
        ids=uids, clusters=[part.clusters[uid] for uid in uids], labels=[captions[uid][0] for uid in uids],
        predictions=[""] * len(uids), numbers={"alignment": _squared_distances(images_QD, texts_QD)},
        dropped=part.dropped | dropped,
    )  # fmt: skip
    alignment = Mean("alignment", "alignment", "number", "lower", bounds=(0, 4))
    row_of = {uid: row for row, uid in enumerate(uids)}
    sampled = np.array([row_of[uid] for uid in first_by_hash(uids, spec.most_pairs)])
    metrics: list[Metric] = [
        Gap("modality_gap", images_QD, texts_QD),
        alignment,
        Uniformity("image_uniformity", images_QD[sampled], sampled),
        Uniformity("text_uniformity", texts_QD[sampled], sampled),
    ]
    shown = np.array([row_of[uid] for uid in first_by_hash(uids, _SHOWN)])
    extra = {"uniformity_pairs": len(sampled), "projection": _projection(images_QD[shown], texts_QD[shown])}
    order = np.random.default_rng(0).permutation(len(uids))
    others = replace(
        rows, labels=[rows.labels[row] for row in order],
        numbers={"alignment": _squared_distances(images_QD, texts_QD[order])},
    )  # fmt: skip
    return [Answer(rows, metrics, extra=extra), Answer(others, [alignment], "shuffled_captions")]


def _squared_distances(images_QD: Floats, texts_QD: Floats) -> Doubles:
    return np.asarray(((images_QD - texts_QD).astype(np.float64) ** 2).sum(axis=1))


def _projection(images_QD: Floats, texts_QD: Floats) -> dict[str, Any]:
    """Both clouds along the first two principal components of their union."""
    points, shares = principal_components(np.concatenate([images_QD, texts_QD]))
    both = points.round(4).tolist()
    return {
        "images": both[: len(images_QD)],
        "texts": both[len(images_QD) :],
        "variance_fractions": shares.round(4).tolist(),
    }
