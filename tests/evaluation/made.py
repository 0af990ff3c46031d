"""A set of pairs and its features written by hand, so that a test says every vector, label, caption and checksum."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data.artifacts import Artifact, Output, Record, find_fingerprint, fingerprint
from data.curation.tables import INSPECTION_SCHEMA, SELECTION_SCHEMA
from data.features import FeatureSet, write_features
from data.selection import write_selection, write_split
from data.shards import CAPTION_SCHEMA, INDEX_SCHEMA, Shard, ShardSet, write_manifest, write_parquet
from evaluation.policy import SplitPolicy
from evaluation.specs import Scored, ZeroShot
from evaluation.subject import SetData, Subject
from training.specs import Prompts


@dataclass(frozen=True)
class Entry:
    """One pair; `captions` are (source, caption), so that a pair may have several of one source."""

    uid: str
    split: str = "test"
    meta: Mapping[str, Any] = field(default_factory=dict)
    captions: Sequence[tuple[str, str]] = ()
    picture: bytes = b""

    @property
    def content(self) -> bytes:
        return hashlib.blake2b(self.picture or self.uid.encode(), digest_size=16).digest()


class Made:
    """Artifacts of one set below one root."""

    def __init__(self, root: Path, entries: Sequence[Entry], name: str = "pairs") -> None:
        self.root, self.entries, self.name = str(root), list(entries), name
        texts = repr([(e.uid, e.split, dict(e.meta), list(e.captions)) for e in entries])
        digest = hashlib.sha256(texts.encode()).hexdigest()
        self.shard_set = self.put(name, "shard_set", {}, self._write_shards, {"digest": digest})
        table = pa.table({"uid": [e.uid for e in entries], "split": [e.split for e in entries]})
        self.split = self.put(
            f"{name}-split", "split", {"pairs": self.shard_set}, lambda uri: write_split(uri, table, "0")
        )

    def put(
        self, name: str, kind: str, parents: Mapping[str, Artifact], write: Any, config: Any = None, metrics: Any = None
    ) -> Artifact:
        prints = {role: parent.fingerprint for role, parent in parents.items()}
        config = {"name": name, **(config or {})}
        print_ = fingerprint(kind, 1, config, prints)
        found = find_fingerprint(self.root, print_)
        if found:
            return found
        out = Output(self.root, name, print_)
        with out.lock():
            write(out.uri)
            return out.commit(
                Record(
                    kind=kind, stage=kind, revision=1, fingerprint=print_, config=config, parents=prints,
                    metrics=metrics or {},
                )
            )  # fmt: skip

    def checkpoint(self, name: str = "model", selection: Artifact | None = None, **config: Any) -> Artifact:
        """A checkpoint without weights, trained on a selection or on nothing."""
        parents = {"pairs": self.shard_set, "selection": selection} if selection else {}
        return self.put(name, "checkpoint", parents, lambda uri: None, config)

    def selection(self, kept: Sequence[str], inspection: Artifact | None = None, name: str = "curate") -> Artifact:
        """A selection that keeps these uids; with an inspection, their pictures' checksums are known."""
        rows = [{"uid": e.uid, "kept": e.uid in kept, "p_keep": 1.0, "draw": 0.5, "reason": ""} for e in self.entries]
        table = pa.Table.from_pylist(rows, SELECTION_SCHEMA)
        parents = {"pairs": self.shard_set, "split": self.split}
        parents |= {"inspection": inspection} if inspection else {}
        return self.put(name, "selection", parents, lambda uri: write_selection(uri, table, "0"), {"kept": list(kept)})

    def inspection(self) -> Artifact:
        """Checksums of all pictures."""
        rows = [{"uid": e.uid, "problem": "", "content": e.content} for e in self.entries]
        table = pa.Table.from_pylist(rows, INSPECTION_SCHEMA)
        return self.put(
            f"{self.name}-inspect", "inspection", {"pairs": self.shard_set},
            lambda uri: write_parquet(f"{uri}/inspection/0.parquet", table), {"pictures": repr(rows)},
        )  # fmt: skip

    def features(
        self, images: Any, texts: Mapping[str, Any], checkpoint: Artifact | None = None, logit_scale: float = 100.0,
        contents: bool = False, rows: Sequence[int] | None = None, name: str = "embed",
    ) -> Artifact:  # fmt: skip
        """A feature set of these vectors as they are; `rows`: only these entries were embedded."""
        rows = sorted(range(len(self.entries)) if rows is None else rows, key=lambda row: self.entries[row].uid)
        images_ND = np.asarray(images, np.float32)[rows]
        texts_TD = np.asarray(list(texts.values()), np.float32).reshape(-1, images_ND.shape[1])
        more = {"contents": pa.array([self.entries[r].content for r in rows], pa.binary(16))} if contents else {}
        finite_images_ND, finite_texts_TD = np.nan_to_num(images_ND), np.nan_to_num(texts_TD)

        def write(uri: str) -> None:
            uids = [self.entries[row].uid for row in rows]
            write_features(uri, uids, finite_images_ND, list(texts), finite_texts_TD, **more)
            # the writer refuses what is not finite: what a reader meets is put there past it
            np.save(f"{uri}/images.npy", images_ND)
            np.save(f"{uri}/texts.npy", texts_TD)

        parents = {"checkpoint": checkpoint or self.checkpoint(), "pairs": self.shard_set, "split": self.split}
        digest = hashlib.sha256(images_ND.tobytes() + texts_TD.tobytes() + repr((rows, list(texts))).encode())
        config = {"digest": digest.hexdigest(), "contents": contents}
        return self.put(name, "feature_set", parents, write, config, {"logit_scale": logit_scale})

    def data(
        self, features: Artifact, splits: Sequence[str] = ("test",), cluster_field: str | None = None, name: str = "set"
    ) -> SetData:
        """The set, opened with these splits as the scored ones."""
        scored = Scored(
            features="f", pairs="p", split="s", splits=tuple(splits), cluster_field=cluster_field,
            tasks={"unused": ZeroShot(prompts=Prompts(field="unused"))},
        )  # fmt: skip
        return SetData(name, scored, FeatureSet(features), ShardSet(self.shard_set), self.split, None)

    def _write_shards(self, uri: str) -> None:
        # pictures are never decoded here: the index says where they would be
        rows = [
            {"uid": e.uid, "ext": "png", "offset": 0, "bytes": 1, "meta": json.dumps(dict(e.meta))}
            for e in self.entries
        ]
        captions = [
            {"uid": e.uid, "source": source, "caption": caption, "provenance": None}
            for e in self.entries for source, caption in e.captions
        ]  # fmt: skip
        write_parquet(f"{uri}/index/0.parquet", pa.Table.from_pylist(rows, INDEX_SCHEMA))
        write_parquet(f"{uri}/captions/0.parquet", pa.Table.from_pylist(captions, CAPTION_SCHEMA))
        write_manifest(uri, [Shard("0", "shards/0.tar", len(rows), 0, "")], [])


def policy_of(*sets: SetData) -> SplitPolicy:
    """The policy that guards these sets' scored splits."""
    scored = {one.name: {uid for split in one.scored.splits for uid in one.split_uids(split)} for one in sets}
    return SplitPolicy(scored, {one.name: one for one in sets})


def subject_of(data: SetData, split: str = "test") -> Subject:
    """One split of a set that stands alone."""
    policy = policy_of(data)

    def other(where: str) -> Subject:
        return Subject(data, data.part(where.rpartition("/")[2]), policy, other)

    return Subject(data, data.part(split), policy, other)


def unit(vectors: Any) -> np.ndarray:
    """Rows of length 1, float32."""
    vectors = np.asarray(vectors, np.float64)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)
