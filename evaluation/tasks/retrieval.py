"""Retrieval in both directions within one split: pictures find their caption, captions find a picture of theirs.

Candidates are distinct: equal captions of several pictures are one caption with several correct pictures, so that a
model is never punished for finding the same words at another picture.
"""

import numpy as np

from data.errors import EvaluationError
from evaluation.metrics.ranked import retrieval_metrics
from evaluation.ranks import Ranks, rank_candidates
from evaluation.rows import Rows
from evaluation.specs import Retrieval
from evaluation.subject import Answer, Subject

NO_CAPTION = "no_caption"
IMAGE_TO_TEXT, TEXT_TO_IMAGE = "image_to_text", "text_to_image"


def answer(spec: Retrieval, subject: Subject) -> list[Answer]:
    """Rank captions for every picture and pictures for every distinct caption of a split."""
    part, captions = subject.part, subject.data.captions(spec.caption_sources)
    uids = [uid for uid in part.uids if captions.get(uid)]
    if not uids:
        sources = ", ".join(map(repr, spec.caption_sources))
        raise EvaluationError(f"split {part.name!r}: no pair has a caption of {sources}; use another source")
    dropped = part.dropped | {uid: NO_CAPTION for uid in part.uids if not captions.get(uid)}
    texts = sorted({text for uid in uids for text in captions[uid]})
    row_of = {text: row for row, text in enumerate(texts)}
    captions_of_image = [sorted({row_of[text] for text in captions[uid]}) for uid in uids]
    images_of_caption: list[list[int]] = [[] for _ in texts]
    for image, rows in enumerate(captions_of_image):
        for row in rows:
            images_of_caption[row].append(image)

    images_ND, texts_MD = subject.data.image_features(uids), subject.data.texts(texts)
    first = [captions[uid][0] for uid in uids]
    clusters = [part.clusters[uid] for uid in uids]
    to_text = _rows(
        IMAGE_TO_TEXT, uids, first, clusters, texts, rank_candidates(images_ND, texts_MD, captions_of_image), dropped
    )
    # a caption whose pictures lie in several clusters counts for the first of them
    owners = [min(clusters[image] for image in images) for images in images_of_caption]
    to_image = _rows(
        TEXT_TO_IMAGE, texts, texts, owners, uids, rank_candidates(texts_MD, images_ND, images_of_caption), {}
    )
    return [
        Answer(to_text, retrieval_metrics(IMAGE_TO_TEXT, spec.ks)),
        Answer(to_image, retrieval_metrics(TEXT_TO_IMAGE, spec.ks)),
    ]


def _rows(
    direction: str, ids: list[str], labels: list[str], clusters: list[str], candidates: list[str], ranks: Ranks,
    dropped: dict[str, str],
) -> Rows:  # fmt: skip
    return Rows(
        ids=ids, clusters=clusters, labels=labels, predictions=[candidates[row] for row in ranks.best],
        direction=direction, dropped=dropped,
        numbers={
            "rank": ranks.rank, "ties": ranks.ties, "positives": ranks.positives,
            "candidates": np.full(len(ids), len(candidates), np.int64),
            "correct": (ranks.rank == 1).astype(np.int64),
        },
    )  # fmt: skip
