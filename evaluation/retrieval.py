"""Retrieval in both directions within one split: pictures find their caption, captions find a picture of theirs.

Candidates are distinct: equal captions of several pictures are one caption with several correct pictures, so that a
model is never punished for finding the same words at another picture.
"""

import numpy as np

from data.errors import EvaluationError
from data.features import FeatureSet
from evaluation.held_out import HeldOut
from evaluation.metrics import Metric, retrieval_metrics
from evaluation.queries import Queries
from evaluation.ranks import Ranks, rank_candidates, require_finite
from evaluation.specs import Retrieval

NO_CAPTION = "no_caption"
IMAGE_TO_TEXT, TEXT_TO_IMAGE = "image_to_text", "text_to_image"


def retrieve(
    spec: Retrieval, features: FeatureSet, split: HeldOut, captions: dict[str, list[str]]
) -> list[tuple[Queries, list[Metric]]]:
    """Rank captions for every picture and pictures for every distinct caption of a split."""
    uids = [uid for uid in split.uids if captions.get(uid)]
    if not uids:
        raise EvaluationError(
            f"split {split.name!r}: no pair has a {spec.caption_source!r} caption; use another source"
        )
    dropped = split.dropped | {uid: NO_CAPTION for uid in split.uids if not captions.get(uid)}
    texts = sorted({text for uid in uids for text in captions[uid]})
    row_of = {text: row for row, text in enumerate(texts)}
    captions_of_image = [sorted({row_of[text] for text in captions[uid]}) for uid in uids]
    images_of_caption: list[list[int]] = [[] for _ in texts]
    for image, rows in enumerate(captions_of_image):
        for row in rows:
            images_of_caption[row].append(image)

    images_ND, texts_MD = features.images[features.image_rows(uids)], features.text_features[features.text_rows(texts)]
    require_finite(images_ND, uids, "uid")
    require_finite(texts_MD, texts, "caption")
    first = [captions[uid][0] for uid in uids]
    clusters = [split.clusters[uid] for uid in uids]
    to_text = _queries(
        IMAGE_TO_TEXT, uids, first, clusters, texts, rank_candidates(images_ND, texts_MD, captions_of_image), dropped
    )
    # a caption whose pictures lie in several clusters counts for the first of them
    owners = [min(clusters[image] for image in images) for images in images_of_caption]
    to_image = _queries(
        TEXT_TO_IMAGE, texts, texts, owners, uids, rank_candidates(texts_MD, images_ND, images_of_caption), {}
    )
    return [
        (to_text, retrieval_metrics(IMAGE_TO_TEXT, spec.ks)),
        (to_image, retrieval_metrics(TEXT_TO_IMAGE, spec.ks)),
    ]


def _queries(
    direction: str, ids: list[str], labels: list[str], clusters: list[str], candidates: list[str], ranks: Ranks,
    dropped: dict[str, str],
) -> Queries:  # fmt: skip
    return Queries(
        ids=ids, clusters=clusters, labels=labels, predictions=[candidates[row] for row in ranks.best],
        ranks=ranks.rank, ties=ranks.ties, positives=ranks.positives, direction=direction, dropped=dropped,
        candidates=np.full(len(ids), len(candidates), np.int64),
    )  # fmt: skip
