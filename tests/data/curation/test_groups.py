"""Union-find over rows against a plain search, and the rule that says which pair of a group stays."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.curation.groups import alone, group_equal, is_linked, join_all, labels_of, merge, representatives


def labels_by_search(num_rows, links):
    """Smallest row that can be reached from each row."""
    neighbours = {row: {row} for row in range(num_rows)}
    for left, right in links:
        neighbours[left].add(right)
        neighbours[right].add(left)
    labels = []
    for row in range(num_rows):
        seen, queue = {row}, [row]
        while queue:
            queue += (new := neighbours[queue.pop()] - seen)
            seen |= new
        labels.append(min(seen))
    return labels


def linked(num_rows, links):
    parent = alone(num_rows)
    join_all(parent, *np.array(links, np.int64).reshape(-1, 2).T)
    return labels_of(parent)


LINKS = st.integers(1, 20).flatmap(
    lambda n: st.tuples(st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=30))
)


@settings(max_examples=100, deadline=None)
@given(LINKS, st.randoms())
def test_components_are_what_a_search_finds_in_any_order_of_links(case, random):
    num_rows, links = case
    assert linked(num_rows, links).tolist() == labels_by_search(num_rows, links)
    random.shuffle(links)
    assert linked(num_rows, [link[::-1] for link in links]).tolist() == labels_by_search(num_rows, links)


def test_a_long_chain_is_one_group():
    num_rows = 100_000
    links = np.stack([np.arange(num_rows - 1), np.arange(1, num_rows)], axis=1)[::-1]
    assert not linked(num_rows, links).any()


def test_partitions_merge_over_shared_rows():
    one, other = np.array([0, 0, 2, 3, 4]), np.array([0, 1, 1, 3, 4])
    merged = merge([one, other])
    assert merged.tolist() == [0, 0, 0, 3, 4]
    assert is_linked(merged).tolist() == [True, True, True, False, False]
    assert merge([one]).tolist() == one.tolist()
    assert merge([alone(0)]).tolist() == []


def test_equal_keys_group_at_the_first_row_and_others_stay_alone():
    labels = group_equal(6, np.array([1, 3, 4, 5]), np.array([9, 7, 9, 8]))
    assert labels.tolist() == [0, 1, 2, 3, 1, 5]
    assert group_equal(2, np.array([], np.int64), np.array([], np.int64)).tolist() == [0, 1]


def test_the_largest_picture_stays_then_the_smallest_uid():
    uids = pa.array(["a", "b", "c", "d", "e", "f"])
    groups = pa.array(["a", "a", "a", None, "e", "e"])
    mask = representatives(uids, groups, np.array([10, 30, 30, 1, 0, 0]))
    assert mask.tolist() == [False, True, False, True, True, False]


def test_when_the_largest_was_filtered_out_the_next_stays():
    mask = representatives(pa.array(["a", "c"]), pa.array(["a", "a"]), np.array([10, 30]))
    assert mask.tolist() == [False, True]
    assert representatives(pa.array(["a"]), pa.array(["a"]), np.array([10])).tolist() == [True]
    assert representatives(pa.array([], pa.string()), pa.array([], pa.string()), np.array([], np.int64)).tolist() == []


@pytest.mark.parametrize("seed", range(5))
def test_one_of_each_group_whatever_the_order_of_rows(seed):
    random = np.random.default_rng(seed)
    uids = np.array([f"u{n:03d}" for n in range(60)])
    groups = np.array([f"g{n}" if n < 8 else None for n in random.integers(0, 12, 60)], object)
    pixels = random.integers(1, 4, 60)
    kept = representatives(pa.array(uids), pa.array(groups, pa.string()), pixels)
    for group in set(groups) - {None}:
        members = [(-p, u) for p, u, g in zip(pixels, uids, groups, strict=True) if g == group]
        assert uids[(groups == group) & kept].tolist() == [min(members)[1]]
    assert kept[groups == None].all()  # noqa: E711 - an array of objects
    order = random.permutation(60)
    chunked = pa.chunked_array([groups[order][:20], groups[order][20:]], pa.string())
    assert representatives(pa.array(uids[order]), chunked, pixels[order]).tolist() == kept[order].tolist()
