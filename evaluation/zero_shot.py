"""Zero-shot classification: pictures against classes that are only named, as CLIP_benchmark builds them.

Legend: N pictures, C classes, T templates, D embedding.
"""

import numpy as np

from data.errors import EvaluationError
from data.features import FeatureSet, Floats
from evaluation.held_out import HeldOut, Meta, require_field
from evaluation.metrics import Metric, zero_shot_metrics
from evaluation.queries import Queries
from evaluation.ranks import rank_candidates, require_finite
from evaluation.specs import ZeroShot
from training.specs import Prompts

NO_LABEL = "no_label"
_NONE = (None, "")  # what `embed` makes no prompt for


def class_names(meta: Meta, prompts: Prompts) -> list[str]:
    """All values of the field over the whole shard set, sorted: a model must not profit from what a split lacks.

    Raises:
        EvaluationError: the field does not exist or has a single value.
    """
    require_field(meta, prompts.field, "prompts.field")
    names = sorted({str(values[prompts.field]) for values in meta.values() if values.get(prompts.field) not in _NONE})
    if len(names) < 2:
        raise EvaluationError(f"prompts.field: {prompts.field!r} has one value {names}; zero-shot needs two classes")
    return names


def class_features(features: FeatureSet, classes: list[str], templates: tuple[str, ...]) -> Floats:
    """(C, D): per class the normalised mean of its filled templates.

    Raises:
        EvaluationError: a template lacks {c}, or the mean of a class is not a direction.
        ArtifactError: a filled template was not embedded.
    """
    for template in templates:
        if "{c}" not in template:
            raise EvaluationError(f"prompts.templates: {template!r} has no {{c}}; write it where the class name goes")
    mean_CD = np.zeros((len(classes), features.text_features.shape[1]), np.float32)
    for template in templates:
        mean_CD += features.text_features[features.text_rows(template.replace("{c}", name) for name in classes)]
    require_finite(mean_CD, classes, "class")
    norm_C1 = np.linalg.norm(mean_CD, axis=1, keepdims=True)
    if not norm_C1.all():
        raise EvaluationError(f"class {classes[int(norm_C1.argmin())]!r}: its templates cancel out; use fewer")
    return np.asarray(mean_CD / norm_C1, np.float32)


def classify(spec: ZeroShot, features: FeatureSet, split: HeldOut) -> tuple[Queries, list[Metric]]:
    """Rank all classes for every labelled picture of a split."""
    classes = class_names(split.meta, spec.prompts)
    label_of = {uid: split.meta[uid].get(spec.prompts.field) for uid in split.uids}
    uids = [uid for uid in split.uids if label_of[uid] not in _NONE]
    dropped = split.dropped | {uid: NO_LABEL for uid in split.uids if label_of[uid] in _NONE}
    if not uids:
        raise EvaluationError(f"split {split.name!r}: no pair has a {spec.prompts.field!r}; use another field or split")
    labels = [str(label_of[uid]) for uid in uids]
    images_ND = features.images[features.image_rows(uids)]
    require_finite(images_ND, uids, "uid")
    number = {name: row for row, name in enumerate(classes)}
    ranks = rank_candidates(
        images_ND, class_features(features, classes, spec.prompts.templates), [[number[label]] for label in labels]
    )
    queries = Queries(
        ids=uids, clusters=[split.clusters[uid] for uid in uids], labels=labels,
        predictions=[classes[row] for row in ranks.best], ranks=ranks.rank, ties=ranks.ties, positives=ranks.positives,
        candidates=np.full(len(uids), len(classes), np.int64), dropped=dropped,
    )  # fmt: skip
    return queries, zero_shot_metrics(len(classes))
