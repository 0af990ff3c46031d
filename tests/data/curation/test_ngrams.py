"""The n-gram table and the kernels under the matcher: perfect hashing, sorting by rank, compilation without a cache."""

import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from data.curation.kernels import text_buffers
from data.curation.match import space_relaxed
from data.curation.ngram_table import _perfect, build_table
from data.curation.ngrams import LANES, _distinct, relax_ascii


@pytest.mark.parametrize("count", [0, 1, 5, 1000, 50_000])
def test_every_hash_has_a_slot_of_its_own(count):
    hashes = np.random.default_rng(0).integers(0, 2**64, count, np.uint64)
    _, slots, num_slots = _perfect(hashes)
    assert len(np.unique(slots)) == count
    assert count == 0 or 0 <= slots.min() <= slots.max() < num_slots


def test_equal_hashes_have_no_slots():
    assert _perfect(np.array([5, 7, 5], np.uint64)) is None


def test_table_stays_small():
    entries = pa.array([f"word{number} next{number % 100}" for number in range(20_000)], pa.large_string())
    table = build_table(entries, np.zeros(20_000, np.bool_), np.arange(20_000))
    assert table.longest == 2
    assert table.nbytes < 20_000 * 2 * 48  # 32 bytes a token, 16 a pair, a quarter of slots empty


@pytest.mark.parametrize("held", [0, 1, 2, 31, 32, 33, 64, 65, 300])
def test_distinct_is_sorted_set(held):
    values = np.random.default_rng(held).integers(0, max(1, held), held + 3).astype(np.int32)
    raw = np.concatenate((values, np.full(LANES, 7, np.int32)))
    ids = np.empty(held + LANES + 5, np.int32)
    end = _distinct(raw, 3, held, np.empty(64 + LANES, np.int32), ids, 5)
    assert ids[5:end].tolist() == sorted(set(values[3:].tolist()))


def test_ascii_is_relaxed_as_python_does():
    texts = ["".join(map(chr, np.random.default_rng(k).integers(0, 128, k))) for k in range(60)] + ["", "  ", ",,A b!"]
    out, starts = relax_ascii(*text_buffers(texts), np.zeros(len(texts), np.bool_))
    found = [bytes(out[starts[k] : starts[k + 1]]).decode() for k in range(len(texts))]
    assert found == [space_relaxed(text) for text in texts]


def test_compiles_where_nothing_can_be_written():
    code = """
import pathlib
import numba.core.caching as caching
for locator in caching._CacheLocator.__subclasses__():
    locator.from_function = classmethod(lambda cls, function, path: None)
from data.curation.balance import count_entries
import numpy as np
print(count_entries(np.array([1], np.int32), 2).tolist())
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.strip() == "[0, 1]", done.stderr
