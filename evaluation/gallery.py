"""The pictures a model finds for typed words, for reports and for `search`."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data.features import FeatureSet, Floats
from evaluation.ranks import require_finite


class Hit(NamedTuple):
    """A picture found for a query; score is the cosine of picture and query."""

    uid: str
    score: float


def best_pictures(features: FeatureSet, uids: Sequence[str], query_D: Floats, count: int) -> list[Hit]:
    """The `count` pictures among `uids` nearest to a query's features; equal scores in order of uid."""
    uids = sorted(uids)
    images_ND = np.asarray(features.images[features.image_rows(uids)])
    require_finite(images_ND, uids, "uid")
    scores_N = images_ND @ query_D
    order = np.argsort(-scores_N, kind="stable")[:count]
    return [Hit(uids[row], float(scores_N[row])) for row in order]
