"""Small pictures for a page, out of bytes that nobody vouches for, and of vendors that allow it only."""

import base64
import io
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from data.curation.plain import one_line
from data.curation.tables import shard_table
from data.shards import ShardSet

LONGEST_CAPTION = 160
_SIDE = 160
_FORMATS = ("JPEG", "PNG", "WEBP")


class Chosen(NamedTuple):
    """A pair to show as an example: where it is, and what became of it ("" for a kept one)."""

    shard: int
    uid: str
    caption: str | None
    reason: str
    p_keep: float


class Example(NamedTuple):
    """A pair as the page shows it; `picture` is a `data:` URI or None, `withheld` says that its vendor forbids it."""

    uid: str
    caption: str
    reason: str
    p_keep: float
    picture: str | None
    withheld: bool


def may_be_shown(data_card: Mapping[str, Any], meta: Mapping[str, Any]) -> bool:
    """Whether a shard set's data card lets a pair's picture be shown.

    A card that lists vendors must name the pair's vendor and say so; one that lists none sets no bounds.
    """
    vendors = data_card.get("vendors")
    return not vendors or bool(vendors.get(str(meta.get("vendor")), {}).get("may_be_shown", False))


def make_examples(shard_set: ShardSet, chosen: Sequence[Chosen], max_pixels: int = 64_000_000) -> tuple[Example, ...]:
    """Examples in the order chosen; a picture that may not be shown is never read, one that cannot be is left out.

    Raises:
        ShardError: a tar is gone or torn.
    """
    card = shard_set.artifact.record.metrics.get("data_card") or {}
    examples: dict[int, Example] = {}
    for shard in sorted({pair.shard for pair in chosen}):  # the index of one shard at a time
        rows = _index_rows(shard_set, shard, {pair.uid for pair in chosen if pair.shard == shard})
        for number, pair in enumerate(chosen):
            if pair.shard == shard:
                row = rows[pair.uid]
                is_shown = may_be_shown(card, json.loads(row["meta"] or "{}"))
                content = shard_set.read_image(shard, row["offset"], row["bytes"]) if is_shown else b""
                picture = thumbnail(content, max_pixels) if is_shown else None
                caption = one_line(pair.caption or "", LONGEST_CAPTION)
                examples[number] = Example(pair.uid, caption, pair.reason, pair.p_keep, picture, not is_shown)
    return tuple(examples[number] for number in sorted(examples))


def _index_rows(shard_set: ShardSet, shard: int, uids: set[str]) -> dict[str, dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.compute as pc

    table = shard_table(shard_set.artifact, "index", shard_set.shards[shard].name, ["uid", "offset", "bytes", "meta"])
    found = table.filter(pc.is_in(table["uid"], value_set=pa.array(sorted(uids), pa.string())))
    return {row["uid"]: row for row in found.to_pylist()}


def thumbnail(content: bytes, max_pixels: int = 64_000_000) -> str | None:
    """A picture of at most 160 pixels a side on white, as a `data:` URI.

    None for what does not decode, and for what claims more than `max_pixels`, which is never unpacked.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as stored:
            if stored.width * stored.height > max_pixels:
                return None
            stored.draft("RGB", (2 * _SIDE, 2 * _SIDE))  # JPEG: unpack no more than is needed
            upright = ImageOps.exif_transpose(stored).convert("RGBA")
    except (OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, struct.error, zlib.error):
        return None  # what ingest or inspection has counted
    except Image.DecompressionBombError:
        return None
    is_small = max(upright.size) <= _SIDE
    upright.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    flat = Image.new("RGBA", upright.size, "white")
    flat.alpha_composite(upright)
    sink = io.BytesIO()
    kind = "png" if is_small else "jpeg"  # small art stays sharp
    flat.convert("RGB").save(sink, kind.upper(), **({"optimize": True} if is_small else {"quality": 82}))
    return f"data:image/{kind};base64,{base64.b64encode(sink.getvalue()).decode()}"
