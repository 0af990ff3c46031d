"""What may learn from what: scored pairs never reach training, a head's fit or the choice of a hyper-parameter.

Ids decide and raise. Pictures decide too where their checksums are known: a fit leaves out those that are scored, and
a model that was trained on some is said to have been.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from data.artifacts import Artifact, Record
from data.curation.tables import INSPECTION_SCHEMA
from data.errors import EvaluationError
from data.selection import kept_uids
from data.shards import ShardSet, read_parquet

if TYPE_CHECKING:
    from evaluation.subject import SetData


class SplitPolicy:
    """Knows every scored pair, by set."""

    def __init__(self, scored: Mapping[str, set[str]], data: Mapping[str, "SetData"]) -> None:
        """`scored`: set -> uids of all its scored splits."""
        self._scored, self._data = dict(scored), dict(data)

    def guard(self, where: str, uids: Sequence[str], data: "SetData") -> None:
        """Refuse pairs that are scored to anything that learns.

        Raises:
            EvaluationError: names the place, how many and one of them.
        """
        for name, other in self._data.items():
            if other.pairs.artifact.fingerprint == data.pairs.artifact.fingerprint:
                both = sorted(self._scored[name].intersection(uids))
                if both:
                    raise EvaluationError(
                        f"{where}: {len(both)} of {len(uids)} pairs are scored in this evaluation, e.g. {both[0]!r}; "
                        "fit and choose on splits that are not scored"
                    )

    def without_scored_pictures(self, uids: Sequence[str], data: "SetData") -> tuple[list[str], int]:
        """Those pairs whose picture is not, byte for byte, one that is scored; and how many were left out."""
        contents = data.features.contents(uids)
        if contents is None:
            return list(uids), 0
        seen = pc.is_in(contents, value_set=self.pictures()).to_pylist()
        kept = [uid for uid, was_seen in zip(uids, seen, strict=True) if not was_seen]
        return kept, len(uids) - len(kept)

    def pictures(self) -> pa.Array:
        """Checksums of all scored pictures that are known."""
        known = [column for column in self._contents if column is not None]
        return pc.unique(pa.concat_arrays(known)) if known else pa.array([], pa.binary(16))

    @cached_property
    def _contents(self) -> list[pa.Array | None]:
        """By set, the checksums of its scored pictures that were embedded; None where its features came without."""
        sets = ((self._data[name].features, sorted(scored)) for name, scored in self._scored.items())
        return [features.contents(features.embedded(uids)) for features, uids in sets]

    def check_training(self) -> dict[str, Any]:
        """Refuse an evaluation of pairs that anything behind the features was trained on; say what was checked.

        A selection is checked where its kept uids were compared with the scored ones of every set, or its pictures.

        Raises:
            EvaluationError: names the split, the count and one uid.
        """
        pretrained: set[str] = set()
        selections: dict[str, Artifact] = {}
        compared: Counter[str] = Counter()  # selection -> sets whose uids were compared with its own
        for name, data in self._data.items():
            for features in filter(None, (data.features, data.views)):
                _require_same(features.artifact, "pairs", data.pairs.artifact)
            for ancestor in data.features.artifact.ancestors():
                pretrained |= _made_elsewhere(ancestor.record)
                if ancestor.record.kind == "selection":
                    selections[ancestor.fingerprint] = ancestor
                    if ancestor.record.parents.get("pairs") == data.pairs.artifact.fingerprint:
                        self._require_disjoint(name, ancestor)
                        compared[ancestor.fingerprint] += 1
        trained = {print_: self._trained_pictures(selection) for print_, selection in selections.items()}
        known = [number for number in trained.values() if number is not None]
        unchecked = [p for p in selections if trained[p] is None and compared[p] < len(self._data)]
        # what weights from elsewhere were trained on cannot be checked: the report says so
        return {
            "selections": len(selections) - len(unchecked),
            "unchecked_selections": len(unchecked),
            "pretrained_elsewhere": sorted(pretrained),
            "scored_pictures_trained_on": sum(known) if known else None,  # None: no checksums to compare
        }

    def _require_disjoint(self, name: str, selection: Artifact) -> None:
        data, kept = self._data[name], kept_uids(selection)
        for split in data.scored.splits:
            uids = pa.array(data.split_uids(split), pa.large_string())
            leaked = uids.filter(pc.is_in(uids, value_set=kept))
            if len(leaked):
                raise EvaluationError(
                    f"{name}: split {split!r}: {len(leaked)} of {len(uids)} pairs are in the training selection "
                    f"{selection.uri}, e.g. {leaked[0].as_py()!r}; evaluate splits that curation leaves out"
                )

    def _trained_pictures(self, selection: Artifact) -> int | None:
        """How many kept pairs show a scored picture, byte for byte; None where checksums are not known."""
        inspections = [a for a in selection.ancestors() if a.record.kind == "inspection"]
        inspection = next(
            (a for a in inspections if a.record.parents.get("pairs") == selection.record.parents.get("pairs")), None
        )
        if inspection is None or any(column is None for column in self._contents):
            return None
        kept, scored, number = kept_uids(selection), self.pictures(), 0
        for shard in ShardSet(selection.parent("pairs")).shards:
            table = read_parquet(inspection.at("inspection", f"{shard.name}.parquet"), ["uid", "content"])
            table = table.filter(pc.is_in(table["uid"], value_set=kept.cast(INSPECTION_SCHEMA.field("uid").type)))
            number += pc.sum(pc.is_in(table["content"], value_set=scored)).as_py() or 0
        return number


def _made_elsewhere(record: Record) -> set[str]:
    """Name of weights that nothing below this root made: an open_clip tag, a weights file, a checkpoint folder."""
    source = record.config.get("source", {}) if record.kind == "checkpoint" else {}
    if record.config.get("pretrained"):
        return {str(record.config["pretrained"])}
    if "origin" in source:
        return {f"checkpoint {source['origin'][:12]}"}
    return {f"weights {source['weights'][:12]}"} if "weights" in source else set()


def _require_same(artifact: Artifact, role: str, expected: Artifact) -> None:
    found = artifact.record.parents.get(role)
    if found != expected.fingerprint:
        made = f"was made with {role} {found[:12]}" if found else f"has no {role}"
        raise EvaluationError(
            f"{artifact.uri}: {made}, the evaluation with {expected.fingerprint[:12]}; use the same {role} stage"
        )
