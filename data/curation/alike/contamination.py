"""Which pairs an evaluation holds too: the same bytes, or a perceptual hash within a few bits of a picture's there."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.curation.alike.near_image import FAR, nearest, valid_hashes
from data.curation.groups import Longs
from data.curation.tables import PROTECTED_SCHEMA


def find(pairs: pa.Table, evaluations: pa.Table, max_distance: int) -> pa.Table:
    """PROTECTED_SCHEMA rows of the `pairs` (sorted by uid) whose picture, or a near copy, `evaluations` holds.

    One row a pair. Of several pictures there, one with the same bytes goes before all others, which may have the same
    hash at most; then the smallest distance decides, then the name of the evaluation, then the uid.

    Args:
        pairs: uid, content, phash (null where it means nothing).
        evaluations: the same columns and `evaluation`, its name.
    """
    ranked = evaluations.sort_by([("evaluation", "ascending"), ("uid", "ascending")])
    by_content, (distance, by_hash) = _same_bytes(pairs, ranked), _near(pairs, ranked, max_distance)
    is_exact = by_content < FAR
    position = np.where(is_exact, by_content, by_hash)
    rows = np.flatnonzero(position < FAR)
    held = ranked.take(pa.array(position[rows]))
    kinds = np.where(is_exact[rows], "exact", "near_image")
    distances = pa.array(np.where(is_exact, 0, distance)[rows].astype(np.int32))
    columns = [pairs["uid"].take(pa.array(rows)), held["evaluation"], held["uid"], pa.array(kinds.tolist()), distances]
    return pa.table(columns, names=PROTECTED_SCHEMA.names).cast(PROTECTED_SCHEMA)


def _same_bytes(pairs: pa.Table, ranked: pa.Table) -> Longs:
    """Per pair the first position in `ranked` with the same content, FAR where there is none."""
    rows = np.flatnonzero(ranked["content"].is_valid().to_numpy())
    encoded = pc.dictionary_encode(ranked["content"].drop_null()).combine_chunks()
    _, first = np.unique(encoded.indices.to_numpy(), return_index=True)
    found = pc.index_in(pairs["content"], value_set=encoded.dictionary)
    code = pc.fill_null(found, -1).to_numpy()
    found_or_far: Longs = np.append(rows[first], FAR)[code]  # -1 is the last
    return found_or_far


def _near(pairs: pa.Table, ranked: pa.Table, max_distance: int) -> tuple[Longs, Longs]:
    """Per pair (distance, position in `ranked`) of the nearest hash, position FAR where none is within reach."""
    rows, queries = valid_hashes(pairs["phash"])
    targets, hashes = valid_hashes(ranked["phash"])
    distance, position = np.zeros(len(pairs), np.int64), np.full(len(pairs), FAR)
    distance[rows], found = nearest(queries, hashes, max_distance)
    position[rows] = np.append(targets, FAR)[found]
    return distance, position
