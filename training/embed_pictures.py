"""One shard's pictures to image_features: each is read and decoded once, and every look is made of it.

Pixels are those of open_clip's own transform, so that features are those that open_clip would give.
Legend: n pictures of a shard, B of a forward pass, S side, D embedding.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from PIL import Image

from data import storage
from data.features import CONTENT, Floats, require_finite
from data.reader import PictureRange, ShardReader
from data.shards import ShardSet, write_parquet
from data.shardwise import Summary
from training.embed_job import PLAIN, Job, new_array
from training.forward import Forward, in_order
from training.pairs import PairStore, unreadable
from training.pictures import UNREADABLE, Pixels, open_picture, put_square
from training.specs import Corrupted, Cropped, ImageView
from training.views import corrupted, cropped

KEYS = "keys"


class Pass(NamedTuple):
    """Pictures of one forward pass: the first one's number, where they lie, and their bytes."""

    first: int
    places: list[PictureRange]
    contents: list[bytes]


def embed_shard(job: Job, number: int) -> Summary:
    """Keep the rows of every look at a shard's pictures, (n, D) each, with uids and checksums."""
    pairs = job.pairs()
    name, table = pairs.shards[number].name, job.shard(pairs, number)
    columns = (table[column].to_pylist() for column in ("uid", "offset", "bytes"))
    places = [PictureRange(uid, number, offset, size) for uid, offset, size in zip(*columns, strict=True)]
    forward = job.forward
    do = partial(_embed_pass, forward, pairs, job.looks)
    contents: list[bytes] = []
    with ExitStack() as stack:
        outputs = {look: stack.enter_context(storage.local_output(rows_uri(job, look, name))) for look in job.looks}
        rows = {look: new_array(path, (len(places), job.embed_dim)) for look, path in outputs.items()}
        for one, features, digests in in_order(
            do, passes(pairs, places, forward.rows), job.threads, job.ahead(forward.rows)
        ):
            contents += digests
            for look, values_BD in features.items():
                rows[look][one.first : one.first + len(values_BD)] = values_BD
            job.progress(one.first + len(digests), name, len(places))
    keys = pa.table({"uid": table["uid"].cast(pa.large_string()), "content": pa.array(contents, CONTENT)})
    write_parquet(rows_uri(job, KEYS, name), keys)
    return {"pairs": len(places)}


def rows_uri(job: Job, look: str, name: str) -> str:
    """Where a shard's rows of a look are kept until the set is put together."""
    return job.state("rows", name, f"{look}.{'parquet' if look == KEYS else 'npy'}")


def passes(pairs: ShardSet, places: Sequence[PictureRange], size: int) -> Iterator[Pass]:
    """The pictures in forward passes of `size`, read by whoever iterates."""
    reader = ShardReader(pairs)
    for first in range(0, len(places), size):
        part = list(places[first : first + size])
        yield Pass(first, part, reader.read(part))


def _embed_pass(
    forward: Forward, pairs: ShardSet, looks: Mapping[str, ImageView | None], one: Pass
) -> tuple[Pass, dict[str, Floats], list[bytes]]:
    """The features (B, D) of every look, and the pictures' checksums."""
    plain, crops = _decoded(forward, pairs, looks, one)
    features: dict[str, Floats] = {}
    for look, view in looks.items():
        pixels = _damaged(forward, view, plain, one) if isinstance(view, Corrupted) else crops.get(look, plain)
        features[look] = forward.images(pixels)
        require_finite(features[look], [place.uid for place in one.places], "uid")
    return one, features, [hashlib.blake2b(content, digest_size=16).digest() for content in one.contents]


def _decoded(
    forward: Forward, pairs: ShardSet, looks: Mapping[str, ImageView | None], one: Pass
) -> tuple[Pixels, dict[str, Pixels]]:
    """What a tower sees of the pictures, and their crops: those need the whole picture, which is not kept."""
    views = {look: view for look, view in looks.items() if isinstance(view, Cropped)}
    plain, crops = forward.room(len(one.places)), {look: forward.room(len(one.places)) for look in views}
    for row, (place, content) in enumerate(zip(one.places, one.contents, strict=True)):
        picture = decode(pairs, place, content)
        put_square(picture, None, plain[row], forward.towers.fit)
        for look, view in views.items():
            crops[look][row] = cropped(view, picture, len(plain[row]), place.uid)
    return plain, crops


def decode(pairs: ShardSet, place: PictureRange, content: bytes) -> Image.Image:
    """The picture in RGB; ShardError names the uid and shard of one that cannot be read."""
    try:
        return open_picture(content)
    except UNREADABLE as error:
        raise unreadable(pairs, place, error) from error


def _damaged(forward: Forward, view: Corrupted, plain_BSS3: Pixels, one: Pass) -> Pixels:
    pixels = forward.room(len(plain_BSS3))
    for row, place in enumerate(one.places):
        pixels[row] = corrupted(view, plain_BSS3[row], place.uid)
    return pixels


def embed_rows(forward: Forward, store: PairStore, rows: Sequence[int], threads: int) -> Floats:
    """image_features (N, D) of the pairs in these rows of a store, in memory."""
    places = store.ranges(np.asarray(rows, np.int64))
    do = partial(_embed_pass, forward, store.shard_set, {PLAIN: None})
    done = in_order(do, passes(store.shard_set, places, forward.rows), threads, 2 * threads)
    found = [np.empty((0, forward.towers.embed_dim), np.float32)]
    return np.concatenate(found + [features[PLAIN] for _, features, _ in done])
