"""What a task works on: a split of a set of pairs, its features and labels, and the splits a head may learn from."""

import hashlib
import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.errors import ArtifactError, EvaluationError, nearest
from data.features import FeatureSet, Floats
from data.selection import read_split, uids_of
from data.shards import CaptionLayer, ShardSet, read_captions
from evaluation.metrics.base import Metric
from evaluation.policy import SplitPolicy
from evaluation.ranks import require_finite
from evaluation.rows import Ints, Rows
from evaluation.specs import Scored
from training.specs import Prompts

NOT_EMBEDDED, NO_LABEL = "not_embedded", "no_label"
_NONE: tuple[Any, ...] = (None, "")  # an empty list is a pair of no class, which counts in multi-label
_BLOCK_PAIRS = 4096


class Answer(NamedTuple):
    """What a task found: rows, the metrics over them, and what a reader must know of how.

    `baseline`: "" for what was asked, else the name of what stands beside it (`majority`, `shuffled_labels`,
    `zero_shot`, `nearest_neighbours` ...). `chosen`: hyper-parameters with the split that chose them.
    `extra`: small JSON for the report's plots.
    """

    rows: Rows
    metrics: Sequence[Metric]
    baseline: str = ""
    chosen: Mapping[str, Any] = {}
    extra: Mapping[str, Any] = {}


class Part(NamedTuple):
    """The pairs of one split that have features, sorted by uid; `dropped` maps the others to a reason."""

    name: str
    uids: list[str]
    dropped: dict[str, str]
    clusters: dict[str, str]


class Labelled(NamedTuple):
    """Pairs of a part that have a class. Legend: Q pairs, C classes, D embedding."""

    part: Part
    uids: list[str]
    classes: list[str]
    labels: Ints  # (Q,) number of the class; of multi-label pairs -1
    truth: np.ndarray[Any, np.dtype[np.bool_]] | None  # (Q, C) of multi-label pairs
    dropped: dict[str, str]

    @property
    def clusters(self) -> list[str]:
        """Cluster of each pair."""
        return [self.part.clusters[uid] for uid in self.uids]

    @property
    def names(self) -> list[str]:
        """Class name of each pair; several are joined by ` | `."""
        if self.truth is None:
            return [self.classes[label] for label in self.labels.tolist()]
        return [" | ".join(self.classes[c] for c in np.flatnonzero(row)) for row in self.truth]


class SetData:
    """One scored set: features, pairs, split; metadata is read field by field, as columns."""

    def __init__(
        self, name: str, scored: Scored, features: FeatureSet, pairs: ShardSet, split: Any, views: FeatureSet | None
    ) -> None:
        self.name, self.scored, self.features, self.pairs, self.views = name, scored, features, pairs, views
        self._split = split
        self._fields: dict[str, dict[str, Any]] = {}
        self._known_fields: set[str] = set()
        self._absent: set[str] = set()

    @cached_property
    def _split_table(self) -> pa.Table:
        return read_split(self._split)

    def split_uids(self, name: str) -> list[str]:
        """Sorted uids of a split.

        Raises:
            EvaluationError: there is no such split.
        """
        uids = uids_of(self._split_table, (name,))
        if not uids:
            known = sorted(pc.unique(self._split_table["split"]).to_pylist())
            hint = nearest(name, known) or f"; splits are {', '.join(known)}"
            raise EvaluationError(f"splits: {name!r} is not a split of {self._split.uri}, or it is empty{hint}")
        return uids

    def values(self, field: str) -> dict[str, Any]:
        """Value of a metadata field by uid, over the whole shard set; pairs without one are left out.

        Raises:
            EvaluationError: no pair has the field.
        """
        if field not in self._fields:
            found: dict[str, Any] = {}
            for uid, meta in self.pairs.metadata():
                if meta.get(field) not in _NONE:
                    found[uid] = meta[field]
                else:
                    self._known_fields |= meta.keys()
            if not found:
                known = sorted(self._known_fields)
                hint = nearest(field, known) or f"; fields are {', '.join(known) or 'none'}"
                raise EvaluationError(f"{self.name}: no pair has a metadata field {field!r}{hint}")
            self._fields[field] = found
        return self._fields[field]

    def has(self, field: str) -> bool:
        """True if a pair of the shard set has this metadata field."""
        if field in self._absent:
            return False
        try:
            self.values(field)
        except EvaluationError:
            self._absent.add(field)
            return False
        return True

    def part(self, name: str, features: FeatureSet | None = None) -> Part:
        """The pairs of a split that have features.

        Raises:
            ArtifactError: the feature set holds nothing of this split.
        """
        uids = self.split_uids(name)
        embedded = (features or self.features).embedded(uids)
        if not embedded:
            uri = (features or self.features).artifact.uri
            raise ArtifactError(f"{uri}: no pair of split {name!r}; add it to the embed stage's splits")
        dropped = dict.fromkeys(sorted(set(uids).difference(embedded)), NOT_EMBEDDED)
        field = self.scored.cluster_field
        groups = self.values(field) if field else {}
        return Part(name, embedded, dropped, {uid: str(groups.get(uid, uid)) for uid in embedded})

    def captions(self, sources: Sequence[str]) -> dict[str, list[str]]:
        """Captions by uid, source by source, from the shard set and the layers that were embedded with it.

        `alt*` stands for every source that begins with alt: what a benchmark gives a picture, however many there are.

        Raises:
            EvaluationError: nothing has captions of one of the sources.
        """
        found: dict[str, list[str]] = {}
        missing, known = set(sources), set[str]()
        for table in self._caption_tables():
            here = pc.unique(table["source"]).to_pylist()
            known |= set(here)
            asked_for = {name: next((s for s in sources if fnmatchcase(name, s)), None) for name in here}
            named = pa.array([name for name, asked in asked_for.items() if asked], pa.string())
            wanted = table.filter(pc.is_in(table["source"], value_set=named))
            columns = (wanted[name].to_pylist() for name in ("uid", "source", "caption"))
            for uid, source, caption in zip(*columns, strict=True):
                if caption and caption.strip():
                    found.setdefault(uid, []).append(caption)
                    missing.discard(str(asked_for[source]))
        if missing:
            source = sorted(missing)[0]
            hint = nearest(source, known) or f"; sources are {', '.join(sorted(known)) or 'none'}"
            raise EvaluationError(f"{self.name}: no caption has source {source!r}{hint}")
        return found

    def _caption_tables(self) -> Any:
        for shard in self.pairs.shards:
            yield read_captions([self.pairs.artifact.at("captions", f"{shard.name}.parquet")])
        for role in self.features.artifact.record.parents:
            if role.startswith("caption_layers."):
                yield CaptionLayer(self.features.artifact.parent(role)).captions()

    def class_names(self, prompts: Prompts) -> list[str]:
        """The classes: those of the prompts, else all values of the field over the whole shard set, sorted.

        Raises:
            EvaluationError: there are fewer than two.
        """
        if prompts.classes is not None:
            return list(prompts.classes)
        found: set[str] = set()
        for value in self.values(prompts.field).values():
            found |= {str(one) for one in value} if isinstance(value, list) else {str(value)}
        if len(found) < 2:
            raise EvaluationError(
                f"prompts.field: {prompts.field!r} has one value {sorted(found)}; classification needs two"
            )
        return sorted(found)

    def class_features(self, prompts: Prompts) -> Floats:
        """(C, D): per class the normalised mean of its filled templates.

        Raises:
            EvaluationError: a template lacks {c}, or the mean of a class is not a direction.
            ArtifactError: a filled template was not embedded.
        """
        classes, features = self.class_names(prompts), self.features
        for template in prompts.templates:
            if "{c}" not in template:
                raise EvaluationError(
                    f"prompts.templates: {template!r} has no {{c}}; write it where the class name goes"
                )
        mean_CD = np.zeros((len(classes), features.text_features.shape[1]), np.float32)
        for template in prompts.templates:
            mean_CD += features.text_features[features.text_rows(template.replace("{c}", name) for name in classes)]
        require_finite(mean_CD, classes, "class")
        norm_C1 = np.linalg.norm(mean_CD, axis=1, keepdims=True)
        if not norm_C1.all():
            raise EvaluationError(f"class {classes[int(norm_C1.argmin())]!r}: its templates cancel out; use fewer")
        return np.asarray(mean_CD / norm_C1, np.float32)

    def labelled(self, part: Part, prompts: Prompts) -> Labelled:
        """The pairs of a part that have a class.

        Raises:
            EvaluationError: none has, or one has a class that the list does not.
        """
        values, classes = self.values(prompts.field), self.class_names(prompts)
        uids = [uid for uid in part.uids if uid in values]
        if not uids:
            raise EvaluationError(
                f"{self.name}: no pair of split {part.name!r} has a {prompts.field!r}; use another field or split"
            )
        number = {name: row for row, name in enumerate(classes)}
        found = [_class_numbers(values[uid], number, len(classes), prompts, uid) for uid in uids]
        multi = any(isinstance(values[uid], list) for uid in uids)
        truth_QC = None
        if multi:
            truth_QC = np.zeros((len(uids), len(classes)), bool)
            for row, own in enumerate(found):
                truth_QC[row, own] = True
        labels_Q = np.full(len(uids), -1) if multi else np.array([own[0] for own in found])
        dropped = part.dropped | {uid: NO_LABEL for uid in part.uids if uid not in values}
        return Labelled(part, uids, classes, labels_Q.astype(np.int64), truth_QC, dropped)

    def image_features(self, uids: Sequence[str], view: str = "") -> Floats:
        """(Q, D) of these pairs; of a named view of `Scored.views`, or of the plain pictures.

        Raises:
            EvaluationError: a feature is not finite, or there are no views.
        """
        store = self.views if view else self.features
        if store is None:
            raise EvaluationError(f"{self.name}: no views were embedded; name a feature set with views as `views`")
        images_QD = np.asarray((store.view(view) if view else store.images)[store.image_rows(uids)], np.float32)
        require_finite(images_QD, uids, "uid")
        return images_QD

    def image_blocks(self, uids: Sequence[str], view: str = "") -> Iterator[Floats]:
        """The same in blocks (B, D), so that memory does not grow with the number of pictures."""
        for at in range(0, len(uids), _BLOCK_PAIRS):
            yield self.image_features(uids[at : at + _BLOCK_PAIRS], view)

    def texts(self, texts: Sequence[str]) -> Floats:
        """text_features (T, D) of these texts.

        Raises:
            EvaluationError: a feature is not finite.
            ArtifactError: a text was not embedded.
        """
        texts_TD = np.asarray(self.features.text_features[self.features.text_rows(texts)], np.float32)
        require_finite(texts_TD, texts, "text")
        return texts_TD


class Subject(NamedTuple):
    """One split of one set, as a task sees it."""

    data: SetData
    part: Part
    policy: SplitPolicy
    other: Callable[[str], "Subject"]  # `set/split`, or a split of this set, which may be scored itself

    @property
    def logit_scale(self) -> float:
        """The model's temperature: similarities times this are its logits."""
        return self.data.features.logit_scale

    def tested(self, prompts: Prompts) -> Labelled:
        """The labelled pairs that are scored."""
        return self.data.labelled(self.part, prompts)

    def fitting(self, split: str) -> Part:
        """A split that a head may fit on or choose by; nothing of it is scored.

        Raises:
            EvaluationError: it shares uids or pictures with what is scored.
        """
        part = self.data.part(split)
        self.policy.guard(f"{self.data.name}/{split}", part.uids, self.data)
        return part

    def fitting_labelled(self, split: str, prompts: Prompts) -> tuple[Labelled, int]:
        """The labelled pairs of such a split without those whose picture is scored, and how many those were.

        Raises:
            EvaluationError: it shares uids with what is scored, or nothing with a label is left.
        """
        part = self.fitting(split)
        uids, left_out = self.policy.without_scored_pictures(part.uids, self.data)
        return self.data.labelled(part._replace(uids=uids), prompts), left_out


def first_by_hash(uids: Sequence[str], most: int) -> list[str]:
    """Sorted uids of at most so many pairs, chosen by a hash of the uid: the same whatever the order, no favourites."""
    if len(uids) <= most:
        return sorted(uids)
    return sorted(heapq.nsmallest(most, uids, key=lambda uid: hashlib.blake2b(uid.encode(), digest_size=8).digest()))


def _class_numbers(value: Any, number: Mapping[str, int], classes: int, prompts: Prompts, uid: str) -> list[int]:
    found = []
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, int) and not isinstance(one, bool) and prompts.classes is not None:
            if not 0 <= one < classes:
                raise EvaluationError(
                    f"uid {uid!r}: {prompts.field} {one}, but prompts.classes has {classes} names; "
                    "give one name for every label"
                )
            found.append(one)
        elif str(one) in number:
            found.append(number[str(one)])
        else:
            hint = nearest(str(one), number)
            raise EvaluationError(f"uid {uid!r}: {prompts.field} {one!r} is not in prompts.classes{hint}; add it")
    return found
