"""Pictures with the same bytes."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.curation.groups import Longs, group_equal


def link(content: pa.ChunkedArray) -> Longs:
    """Partition of P pictures by their checksum; pictures that could not be read (null) are linked to nothing."""
    rows = np.flatnonzero(content.is_valid().to_numpy())
    codes = pc.dictionary_encode(content.drop_null()).combine_chunks()
    return group_equal(len(content), rows, codes.indices.to_numpy())
