"""Patch tokens of some pictures, with the share of each patch that is foreground by the picture's own transparency.

Legend: K pictures, P patches row by row, W width of the image tower, S side of its input.
"""

import hashlib
import io
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from open_clip.transformer import VisionTransformer
from PIL import Image
from torch import Tensor

from data import storage
from data.artifacts import open_artifact
from data.errors import ModelError
from data.features import Floats, require_finite
from data.reader import PictureRange
from data.shards import ShardSet, read_parquet, write_parquet
from data.shardwise import Summary
from training.embed_job import Job
from training.embed_pictures import Pass, decode, passes
from training.forward import Forward, in_order
from training.pictures import Fit, put_square
from training.towers import Towers

Halves = npt.NDArray[np.float16]
TOKENS, FOREGROUND, UIDS = "tokens.npy", "foreground.npy", "uids.parquet"
_OPAQUE = 255


class Masked(NamedTuple):
    """Pictures that have a mask."""

    uids: list[str]
    tokens: Halves  # (K, P, W)
    foreground: Floats  # (K, P)


def chosen_pairs(job: Job, names: Sequence[str], per_split: int) -> list[list[str]]:
    """Uids of each shard whose patches are kept: of each split the first `per_split` by hash."""
    best: dict[str, list[tuple[bytes, str, int]]] = {name: [] for name in job.spec.splits}
    split = open_artifact(job.uris["split"], "split")
    for number, name in enumerate(names):
        table = read_parquet(split.at("split", f"{name}.parquet"))
        for label, kept in best.items():
            uids = table.filter(pc.equal(table["split"], label))["uid"].to_pylist()
            mine = [(hashlib.blake2b(uid.encode(), digest_size=16).digest(), uid, number) for uid in uids]
            best[label] = sorted(kept + mine)[:per_split]
    chosen: list[list[str]] = [[] for _ in names]
    for kept in best.values():
        for _, uid, number in kept:
            chosen[number].append(uid)
    return chosen


def embed_patch_shard(job: Job, chosen: Sequence[Sequence[str]], number: int) -> Summary:
    """Keep the patch tokens of a shard's chosen pictures, sorted by uid."""
    pairs, forward = job.pairs(), job.forward
    tokens, grid = patch_tokens(forward.towers), patch_grid(forward.towers)
    table = job.shard(pairs, number)
    table = table.filter(pc.is_in(table["uid"], value_set=pa.array(chosen[number], pa.string()))).sort_by("uid")
    columns = (table[column].to_pylist() for column in ("uid", "offset", "bytes"))
    places = [PictureRange(uid, number, offset, size) for uid, offset, size in zip(*columns, strict=True)]
    do = partial(_embed_pass, forward, pairs, tokens, grid)
    parts = [
        part
        for part in in_order(do, passes(pairs, places, forward.rows), job.threads, job.ahead(forward.rows))
        if part.uids
    ]
    if parts:
        uids = [uid for part in parts for uid in part.uids]
        tokens_KPW, foreground_KP = (np.concatenate(column) for column in list(zip(*parts, strict=True))[1:])
        _write(job, pairs.shards[number].name, Masked(uids, tokens_KPW, foreground_KP))
    kept = sum(len(part.uids) for part in parts)
    shape = list(parts[0].tokens.shape[1:]) if parts else None
    return {"kept": kept, "without_alpha": len(places) - kept, "shape": shape}


def _write(job: Job, name: str, found: Masked) -> None:
    for file, values in ((TOKENS, found.tokens), (FOREGROUND, found.foreground)):
        with storage.local_output(patches_uri(job, name, file)) as path, path.open("wb") as stream:
            np.save(stream, values)
    write_parquet(patches_uri(job, name, UIDS), pa.table({"uid": pa.array(found.uids, pa.large_string())}))


def patches_uri(job: Job, name: str, file: str) -> str:
    """Where a shard's patches are kept until the set is put together."""
    return job.state("patch-rows", name, file)


def _embed_pass(
    forward: Forward, pairs: ShardSet, tokens: Callable[[Tensor], Tensor], grid: tuple[int, int], one: Pass
) -> Masked:
    uids: list[str] = []
    pixels, masks = forward.room(len(one.places)), []
    for place, content in zip(one.places, one.contents, strict=True):
        picture, mask = decode(pairs, place, content), opacity(content)
        if mask is not None:
            put_square(picture, None, pixels[len(uids)], forward.towers.fit)
            masks.append(_patch_means(mask, forward.towers.fit, len(pixels[0]), *grid))
            uids.append(place.uid)
    if not uids:
        return Masked([], np.empty((0, 0, 0), np.float16), np.empty((0, 0), np.float32))
    tokens_KPW = forward.patches(pixels[: len(uids)], tokens).astype(np.float16)
    require_finite(tokens_KPW, uids, "uid")
    return Masked(uids, tokens_KPW, np.stack(masks))


def opacity(content: bytes) -> Image.Image | None:
    """A picture's alpha channel; None where it has none or is opaque everywhere, which tells nothing of a foreground.

    The picture is known to be readable.
    """
    with Image.open(io.BytesIO(content)) as picture:
        if picture.mode not in ("RGBA", "LA", "PA") and "transparency" not in picture.info:
            return None
        alpha = picture.convert("RGBA").getchannel("A")
    return None if alpha.getextrema()[0] == _OPAQUE else alpha


def _patch_means(mask: Image.Image, fit: Fit, side: int, per_side: int, patch: int) -> Floats:
    """(P,) mean opacity in [0, 1] of each patch, cut as the towers' input is."""
    square = np.empty((side, side), np.uint8)
    put_square(mask, None, square, fit._replace(fill=0))  # padding is no foreground
    inside = square[: per_side * patch, : per_side * patch].reshape(per_side, patch, per_side, patch)
    return np.asarray(inside.mean(axis=(1, 3), dtype=np.float64).ravel() / _OPAQUE, np.float32)


def patch_tokens(towers: Towers) -> Callable[[Tensor], Tensor]:
    """Function from the image tower's input to its patch tokens (B, P, W), as pooling gets them.

    Raises:
        ModelError: the image tower is not open_clip's own vision transformer.
    """
    visual = _transformer(towers)
    is_normalised = visual.attn_pool is None and not visual.final_ln_after_pool

    def tokens(image_BCHW: Tensor) -> Tensor:
        found = visual.forward_intermediates(
            image_BCHW, indices=1, normalize_intermediates=is_normalised, output_fmt="NLC", intermediates_only=True
        )
        last: Tensor = found["image_intermediates"][-1]
        return last

    return tokens


def patch_grid(towers: Towers) -> tuple[int, int]:
    """(patches along a side, pixels along a patch); raises what `patch_tokens` raises."""
    visual = _transformer(towers)
    return int(visual.grid_size[0]), int(visual.patch_size[0])


def _transformer(towers: Towers) -> Any:
    visual = towers.model.visual
    if not isinstance(visual, VisionTransformer):
        raise ModelError(
            f"patches: the image tower is a {type(visual).__name__}, which shows no patch tokens; "
            "leave patches out, or use a model whose image tower is open_clip's VisionTransformer"
        )
    return visual
