"""Typed words in, pictures out: what `clipworks search` does with a checkpoint and the feature sets made with it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data import storage
from data.artifacts import SHORT, Artifact, artifacts_below, open_artifact
from data.errors import EvaluationError, ModelError, nearest
from data.features import FeatureSet, Floats
from data.shards import ShardSet
from evaluation.contact_sheet import SIDE, Found, draw_sheet
from evaluation.gallery import best_pictures
from evaluation.images import Pictures
from evaluation.sections import first_captions


def search(
    checkpoint: str, query: str, top: int = 12, sheet: str | Path | None = None, root: str | None = None
) -> list[Found]:
    """Rank every picture embedded with a checkpoint for typed words; write a contact sheet (PNG) to `sheet`.

    `checkpoint` is a checkpoint artifact; its last part may leave out the fingerprint where one artifact answers to it.
    Feature sets are looked for in `root`, by default the folder that holds the checkpoint.

    Raises:
        EvaluationError: the words are blank, or nothing was embedded with this checkpoint.
        ArtifactError: there is no such checkpoint.
    """
    if not query.strip():
        raise EvaluationError(f"query: {query!r} is blank; type what to look for")
    if top < 1:
        raise EvaluationError(f"top: {top} is below 1; ask for at least one picture")
    opened = open_artifact(resolve(checkpoint, "checkpoint"), "checkpoint")
    sets = feature_sets(root or opened.root, opened)
    query_D = _encode(opened.uri, query)
    best: dict[str, tuple[float, FeatureSet]] = {}
    for features in sets:
        if features.images.shape[1] != len(query_D):
            raise ModelError(
                f"{features.artifact.uri}: width {features.images.shape[1]}, but the text tower gives {len(query_D)}"
            )
        for hit in best_pictures(features, features.uids, query_D, top):
            best.setdefault(hit.uid, (hit.score, features))
    order = sorted(best, key=lambda uid: (-best[uid][0], uid))[:top]
    found, pictures = _look_up(order, best)
    if sheet is not None:
        with storage.local_output(storage.normalise(sheet)) as path:
            draw_sheet(query, found, pictures).save(path, "PNG")
    return found


def resolve(uri: str, kind: str) -> str:
    """The artifact at `uri`, or the only one of that kind whose name is `uri` and a fingerprint.

    Raises:
        EvaluationError: several artifacts answer to the name, or none does and others are there.
    """
    uri = storage.normalise(uri)
    if storage.exists(uri):
        return uri
    known = {storage.name_of(artifact.uri): artifact.uri for artifact in artifacts_below(storage.parent_of(uri), kind)}
    stage_names = {name: name[: -SHORT - 1] for name in known}
    name = storage.name_of(uri)
    hits = [full for full, stage in stage_names.items() if stage == name]
    if len(hits) == 1:
        return known[hits[0]]
    if hits:
        raise EvaluationError(f"{uri}: {len(hits)} artifacts answer to this; give one of {', '.join(hits)}")
    if known:
        hint = nearest(name, [*stage_names.values(), *known]) or f"; there are {', '.join(known)}"
        raise EvaluationError(f"{uri}: no such {kind}{hint}")
    return uri


def feature_sets(root: str, checkpoint: Artifact) -> list[FeatureSet]:
    """Every feature set below `root` that was made with this checkpoint.

    Raises:
        EvaluationError: there is none.
    """
    made = [
        artifact
        for artifact in artifacts_below(root, "feature_set")
        if artifact.record.parents.get("checkpoint") == checkpoint.fingerprint
    ]
    if not made:
        name = storage.name_of(checkpoint.uri)
        raise EvaluationError(f"{root}: no feature set was made with {name}; run a recipe that embeds with it")
    return [FeatureSet(artifact) for artifact in made]


def _encode(uri: str, query: str) -> Floats:
    from training.towers import load_towers

    features_1D: Floats = load_towers(uri).encode_texts([query])
    return np.asarray(features_1D[0], np.float32)


def _look_up(
    order: Sequence[str], best: Mapping[str, tuple[float, FeatureSet]]
) -> tuple[list[Found], dict[str, Image.Image]]:
    """Captions and pictures of what was found, from each feature set's own shard set."""
    captions: dict[str, str] = {}
    pictures: dict[str, Image.Image] = {}
    stores: dict[str, tuple[Artifact, list[str]]] = {}
    for uid in order:
        pairs = best[uid][1].artifact.parent("pairs")
        stores.setdefault(pairs.fingerprint, (pairs, []))[1].append(uid)
    for artifact, uids in stores.values():
        pairs_set = ShardSet(artifact)
        captions |= first_captions(pairs_set, uids, "alt")
        pictures |= Pictures(pairs_set).read(uids, SIDE)
    return [Found(uid, best[uid][0], captions.get(uid, "")) for uid in order], pictures
