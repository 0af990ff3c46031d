"""A loss on held-out pairs now and then: to watch a run, and to choose its best weights on pairs that judge nothing.

Every rank embeds its equal part; all contrast the features of all. The training's randomness, statistics and mode are
left as they were, so that weights are the same to the bit with and without.
Shapes: N pairs of all ranks, B of this one, C channels, H height, W width, D embed_dim.
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc
import torch
import torch.distributed as dist
from torch import Tensor

from data.artifacts import Artifact
from data.errors import ModelError, ShardError, nearest
from data.selection import read_split, uids_of
from data.shards import CaptionLayer, ShardSet
from training import specs
from training.loading import Batch, PairStore, text_id
from training.loop import PhaseRun, forward
from training.objectives import Context, build_objective
from training.order import Ints
from training.parallel import evaluated, share_buffers
from training.specs import InfoNCE, Phase
from training.towers import Towers


class HeldOut(NamedTuple):
    """The pairs to validate on: rows of a store, in the order of a hash of their uids."""

    store: PairStore
    rows: Ints


def open_held_out(
    spec: specs.Validation, parents: Mapping[str, Artifact], layers: Sequence[Artifact], trained: PairStore
) -> HeldOut:
    """The first so many captioned pairs of the named split.

    Raises:
        ShardError: the split or the caption source is not there, has too few pairs, or one that is trained on.
    """
    split = read_split(parents["validation.split"])
    known = sorted(pc.unique(split["split"]).to_pylist())
    if spec.name not in known:
        raise ShardError(
            f"validation.name {spec.name!r}: no such split{nearest(spec.name, known)}; have {', '.join(known)}"
        )
    store = PairStore(ShardSet(parents["pairs"]), uids_of(split, (spec.name,)), [CaptionLayer(each) for each in layers])
    shared = store.uids.filter(pc.is_in(store.uids, value_set=trained.uids))
    if len(shared):
        raise ShardError(
            f"validation.name {spec.name!r}: {len(shared)} of its pairs are trained on, e.g. {shared[0].as_py()!r}; "
            "take the split out of the selection, or validate on another"
        )
    if spec.source not in store.captions:
        known = sorted(store.captions)
        raise ShardError(f"validation.source {spec.source!r}: not in these pairs; have {', '.join(known)}")
    captioned = np.flatnonzero(store.captions[spec.source].is_valid().to_numpy(zero_copy_only=False))
    hashes = [hashlib.blake2b(uid.encode(), digest_size=8).digest() for uid in store.uids_of(captioned)]
    rows = captioned[sorted(range(len(hashes)), key=hashes.__getitem__)][: spec.pairs]
    return HeldOut(store, rows)


class Validation:
    """Validates one phase on this rank."""

    def __init__(self, spec: specs.Validation, held_out: HeldOut, towers: Towers, rank: int, world_size: int) -> None:
        """Take this rank's part of the held-out pairs; what does not divide by the ranks is left out.

        Raises:
            ShardError: too few pairs for a contrast on so many ranks.
        """
        share = len(held_out.rows) // world_size
        if share * world_size < 2:
            raise ShardError(
                f"validation.name {spec.name!r}: {len(held_out.rows)} captioned pairs on {world_size} ranks; "
                "a contrast needs 2 and each rank 1: hold out more, or validate on another split"
            )
        self.spec, self.store, self.towers, self.world_size = spec, held_out.store, towers, world_size
        self.rows = held_out.rows[rank * share : (rank + 1) * share]
        self.objective = build_objective(InfoNCE(multi_positive=True, gather="local"))

    def is_due(self, step: int, phase: Phase) -> bool:
        """Whether to validate after `step` steps: every so many samples, and at the end."""
        return step % max(1, self.spec.every_samples // phase.global_batch_size) == 0 or step == phase.steps

    def loss(self, run: PhaseRun) -> Tensor:
        """Multi-positive InfoNCE (mean of both directions) over all ranks' pairs, (); every rank calls it.

        Raises:
            ModelError: it is not finite.
        """
        share_buffers(run.towers)
        chunks = self.batch.chunks(run.phase.chunk_pairs or run.phase.global_batch_size // self.world_size)
        with evaluated(run.module):
            outputs = [forward(run, chunk.to(run.towers.device), 0, number) for number, chunk in enumerate(chunks)]
            names = {name: self._of_all([out[name] for out in outputs]) for name in ("image_features", "text_features")}
            names["text_id"] = self._of_all([self.batch.more["text_id"].to(run.towers.device)])
            names["logit_scale"] = outputs[0]["logit_scale"]
            value = self.objective(names, Context(0.0, 0, 1, torch.Generator())).value
        if not value.isfinite():
            fix = "lower optimizer.lr or lengthen schedule.warmup_samples"
            raise ModelError(f"validation loss {float(value):g}: {fix}")
        return value

    @cached_property
    def batch(self) -> Batch:
        """This rank's pairs, decoded exactly and once.

        Raises:
            ShardError: names the uid and shard of a picture that cannot be read.
        """
        side = self.towers.image_size
        pixels_BHWC = np.stack([self.store.decode(int(row), side) for row in self.rows])
        captions = [str(caption) for caption in self.store.captions_of(self.spec.source, self.rows)]
        ids = torch.tensor([text_id(caption) for caption in captions])
        image = torch.from_numpy(pixels_BHWC).permute(0, 3, 1, 2)
        texts, uids = {"text": self.towers.tokenizer(captions)}, self.store.uids_of(self.rows)
        return Batch(image, texts, uids, captions, {"text_id": ids})

    def _of_all(self, parts: list[Tensor]) -> Tensor:
        """Rows of all ranks, in order of ranks: (B, ...) in parts -> (N, ...)."""
        mine = torch.cat(parts).contiguous()
        if self.world_size == 1:
            return mine
        found = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(found, mine)
        return torch.cat(found)
