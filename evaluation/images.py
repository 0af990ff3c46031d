"""Pictures of a shard set by uid: decoded, laid on white, small, and as data URIs for a page that asks nobody."""

import base64
import io
import json
from collections.abc import Iterable, Sequence
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageOps, UnidentifiedImageError

from data.shards import ShardSet

VENDOR = "vendor"


class Pictures:
    """Reads pictures of one shard set; those of vendors that may not be shown are never opened."""

    def __init__(self, pairs: ShardSet, vendors: Sequence[str] = ()) -> None:
        """`vendors`: values of metadata field `vendor`; empty: all may be shown."""
        self.pairs, self._vendors = pairs, frozenset(vendors)

    @cached_property
    def _index(self) -> pa.Table:
        return self.pairs.index()

    @cached_property
    def _showable(self) -> frozenset[str]:
        columns = (self._index[name].to_pylist() for name in ("uid", "meta"))
        found = zip(*columns, strict=True)
        return frozenset(uid for uid, meta in found if json.loads(meta or "{}").get(VENDOR) in self._vendors)

    def may_show(self, uid: str) -> bool:
        """Whether this picture's vendor is among those that may be shown."""
        return not self._vendors or uid in self._showable

    def read(self, uids: Iterable[str], side: int) -> dict[str, Image.Image]:
        """Pictures fitted into a square of `side` pixels on white, without what may not be shown or decoded."""
        wanted = [uid for uid in dict.fromkeys(uids) if self.may_show(uid)]
        rows = self._index.filter(pc.is_in(self._index["uid"], value_set=pa.array(wanted, pa.string())))
        found = {}
        for row in rows.to_pylist():
            picture = _decode(self.pairs.read_image(row["shard"], row["offset"], row["bytes"]), side)
            if picture:
                found[row["uid"]] = picture
        return found

    def data_uris(self, uids: Iterable[str], side: int = 96) -> dict[str, str]:
        """The same pictures as `data:` URIs."""
        return {uid: _data_uri(picture) for uid, picture in self.read(uids, side).items()}


def _decode(content: bytes, side: int) -> Image.Image | None:
    """None for a picture that cannot be decoded: ingest has counted it, a page can do without."""
    try:
        with Image.open(io.BytesIO(content)) as stored:
            image = ImageOps.exif_transpose(stored).convert("RGBA")
    except (UnidentifiedImageError, OSError, ValueError):
        return None
    flat = Image.new("RGBA", image.size, "white")
    flat.alpha_composite(image)
    return ImageOps.pad(flat.convert("RGB"), (side, side), Image.Resampling.LANCZOS, color="white")


def _data_uri(picture: Image.Image) -> str:
    sink = io.BytesIO()
    picture.save(sink, "WEBP", quality=88, method=4)
    return "data:image/webp;base64," + base64.b64encode(sink.getvalue()).decode()
