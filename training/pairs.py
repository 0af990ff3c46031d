"""Pairs by row, sorted by uid: where their pictures lie and what their captions say, lean enough for many millions.

Columns are numpy and arrow arrays, never Python objects: a forked loader worker shares their pages, while every look
at a Python string would write its reference count and so copy the page.
Shapes: N pairs, B pairs asked for, S caption sources.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from data.artifacts import Artifact
from data.errors import ShardError, located
from data.reader import PictureRange, ShardReader
from data.selection import kept_uids
from data.shards import CaptionLayer, ShardSet
from training.order import Ints, derange
from training.pictures import UNREADABLE, Pixels, exact_picture
from training.specs import Fallback, View


class PairStore:
    """The pairs of some uids: pictures by byte range, captions by source."""

    def __init__(
        self, shard_set: ShardSet, uids: Sequence[str] | pa.Array, layers: Sequence[CaptionLayer] = ()
    ) -> None:
        """Keep the pairs of `uids`, with the captions of the shard set and of the layers.

        Raises:
            ShardError: a uid is not in the shard set.
        """
        column = uids.cast(pa.large_string()) if isinstance(uids, pa.Array) else pa.array(uids, pa.large_string())
        self.shard_set, self.uids = shard_set, column.take(pc.sort_indices(column))
        self._place(shard_set.index())
        self.captions: dict[str, pa.Array] = {}  # source -> (N,) large strings, null where a pair has none
        tables = [shard_set.captions(), *(layer.captions() for layer in layers)]
        self._add_captions(pa.concat_tables([table.select(["uid", "source", "caption"]) for table in tables]))
        self._reader: ShardReader | None = None

    def _rows(self, uids: pa.ChunkedArray) -> tuple[Ints, npt.NDArray[np.int64]]:
        """(rows of those uids that are kept, their numbers among `uids`)."""
        row = pc.index_in(uids.cast(pa.large_string()), value_set=self.uids)
        numbers = np.flatnonzero(row.is_valid().to_numpy())
        return row.drop_null().to_numpy().astype(np.int64), numbers

    def _place(self, index: pa.Table) -> None:
        rows, numbers = self._rows(index["uid"])
        self.shard = np.full(len(self), -1, np.int32)
        self.offset, self.bytes = np.empty(len(self), np.int64), np.empty(len(self), np.int64)
        for name, column in (("shard", self.shard), ("offset", self.offset), ("bytes", self.bytes)):
            column[rows] = index[name].to_numpy()[numbers]
        missing = np.flatnonzero(self.shard < 0)
        if len(missing):
            raise ShardError(
                f"{len(missing)} selected uids, e.g. {self.uid(missing[0])!r}, are not in {self.shard_set.artifact.uri}"
            )

    def _add_captions(self, table: pa.Table) -> None:
        """Take the captions of each source; of a pair's captions from one source the last counts."""
        for source in pc.unique(table["source"]).to_pylist():
            part = table.filter(pc.equal(table["source"], source))
            rows, numbers = self._rows(part["uid"])
            if len(rows):
                number_of = np.full(len(self), -1, np.int64)
                number_of[rows] = numbers
                texts = pa.chunked_array(part["caption"].chunks, part["caption"].type).cast(pa.large_string())
                taken = texts.combine_chunks().take(pa.array(number_of, mask=number_of < 0))
                self.captions[source] = taken

    def __len__(self) -> int:
        return len(self.uids)

    def uid(self, row: int) -> str:
        """The uid of the pair in this row."""
        return str(self.uids[int(row)].as_py())

    def uids_of(self, rows: Ints) -> list[str]:
        """The uids of these rows."""
        found: list[str] = self.uids.take(pa.array(rows)).to_pylist()
        return found

    def captions_of(self, source: str, rows: Ints) -> list[str | None]:
        """The captions of these rows from one source, None where a pair has none."""
        found: list[str | None] = self.captions[source].take(pa.array(rows)).to_pylist()
        return found

    def ranges(self, rows: Ints) -> list[PictureRange]:
        """Where the pictures of these rows lie."""
        columns = (column[rows].tolist() for column in (self.shard, self.offset, self.bytes))
        return [PictureRange(*place) for place in zip(self.uids_of(rows), *columns, strict=True)]

    def decode(self, row: int, side: int) -> Pixels:
        """uint8 (side, side, 3) of the pair in this row, as open_clip's validation transform makes it.

        Raises:
            ShardError: names the uid and shard of a picture that cannot be read.
        """
        self._reader = self._reader or ShardReader(self.shard_set)
        place = self.ranges(np.array([row]))[0]
        out = np.empty((side, side, 3), np.uint8)
        try:
            exact_picture(self._reader.read([place])[0], None, out)
        except UNREADABLE as error:
            raise self.unreadable(place, error) from error
        return out

    def unreadable(self, place: PictureRange, error: BaseException) -> ShardError:
        """What to tell of a picture that was read and cannot be decoded."""
        return unreadable(self.shard_set, place, error)


def unreadable(shard_set: ShardSet, place: PictureRange, error: BaseException) -> ShardError:
    """What to tell of a picture that was read and cannot be decoded."""
    name = shard_set.shards[place.shard].name
    told = f"uid {place.uid!r} in shard {name}: not a readable image ({error}); run `clipworks verify`"
    return located(ShardError(told), uid=place.uid, shard=name)


def open_pairs(pairs: Artifact, selection: Artifact, layers: Sequence[Artifact]) -> PairStore:
    """The pairs a selection keeps, with the captions of the shard set and of the layers."""
    return PairStore(ShardSet(pairs), kept_uids(selection), [CaptionLayer(layer) for layer in layers])


class CaptionChoice:
    """One caption a visit: a source drawn by weight among those the pair has.

    LaCLIP's uniform draw when weights are equal.
    Always consumes one draw a pair, so that a pair with one caption leaves the others' draws alone.
    """

    def __init__(
        self, store: PairStore, weights: Mapping[str, float], fallback: Fallback | None = None,
        source: Ints | None = None, first_sentence: bool = False,
    ) -> None:  # fmt: skip
        """`source`: row -> row whose captions it gets; None: its own.

        Raises:
            ShardError: a source is unknown, or some pair has none of them.
        """
        unknown = sorted({*weights, *([fallback.source] if fallback else [])} - set(store.captions))
        if unknown:
            raise ShardError(
                f"caption source {unknown[0]!r}: not in these pairs; there are {', '.join(sorted(store.captions))}"
            )
        self.store, self.names = store, list(weights)
        self.fallback, self.source, self.first_sentence = fallback, source, first_sentence
        self.weight_S = np.array([weights[name] for name in self.names])
        columns = (store.captions[name].is_valid().to_numpy(zero_copy_only=False) for name in self.names)
        self.has_SN = np.stack([column & (weight > 0) for column, weight in zip(columns, self.weight_S, strict=True)])
        without = np.flatnonzero(~self.has_SN.any(axis=0))
        if len(without):
            sources = ", ".join(self.names)
            raise ShardError(
                f"uid {store.uid(without[0])!r}: has none of the caption sources {sources}; "
                "add a source or filter such pairs"
            )

    def take(self, rows: Ints, draws_B: npt.NDArray[np.float64]) -> list[str]:
        """Captions of these rows; `draws_B` are uniform in [0, 1)."""
        rows = rows if self.source is None else self.source[rows]
        weight_SB = self.has_SN[:, rows] * self.weight_S[:, None]
        total_SB = np.cumsum(weight_SB, axis=0)
        chosen_B = (draws_B >= total_SB / total_SB[-1]).sum(axis=0)  # the last share is exactly 1
        texts: list[str | None] = [None] * len(rows)
        for number in np.unique(chosen_B).tolist():
            at = np.flatnonzero(chosen_B == number)
            for place, text in zip(at.tolist(), self.store.captions_of(self.names[number], rows[at]), strict=True):
                texts[place] = text
        return self._shortened(self._long_enough(rows, [str(text) for text in texts]))

    def _long_enough(self, rows: Ints, texts: list[str]) -> list[str]:
        """With the original in place of a caption of too few words, where the pair has an original."""
        if self.fallback is None:
            return texts
        least = self.fallback.min_words
        at = np.array([place for place, text in enumerate(texts) if len(text.split(" ")) < least], np.int64)
        originals = self.store.captions_of(self.fallback.source, rows[at]) if len(at) else []
        for place, text in zip(at.tolist(), originals, strict=True):
            texts[place] = texts[place] if text is None else text
        return texts

    def _shortened(self, texts: list[str]) -> list[str]:
        return [text.partition(". ")[0] for text in texts] if self.first_sentence else texts


class CaptionChoices:
    """All captions of a visit: the main one and those of the view's text slots, each with draws of its own."""

    def __init__(self, store: PairStore, view: View, seed: int) -> None:
        """Raises ShardError as `CaptionChoice` does."""
        source = derange(len(store), view.caption_noise, seed) if view.caption_noise else None
        self.main = CaptionChoice(store, view.caption_weights, view.fallback, source)
        self.slots = {
            name: CaptionChoice(store, slot.caption_weights, view.fallback, source, slot.first_sentence)
            for name, slot in view.texts.items()
        }

    def take(
        self, rows: Ints, draws_B: npt.NDArray[np.float64], slot_draws_BS: npt.NDArray[np.float64]
    ) -> dict[str, list[str]]:
        """Captions by slot; the main ones under the empty name."""
        found = {"": self.main.take(rows, draws_B)}
        for number, (name, choice) in enumerate(self.slots.items()):
            found[name] = choice.take(rows, slot_draws_BS[:, number])
        return found
