"""Thresholds by language: a table by hand, equal shares, and no language that vanishes; scripts without spaces."""

from itertools import chain

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.curation.languages import language_thresholds, tail_share, thresholds_of_entries, unspaced

COUNTS = st.lists(st.integers(0, 50), min_size=1, max_size=30)


def longs(values):
    return np.array(values, np.int64)


def thresholds(t_english, **counts):
    language_E = [language for language, values in counts.items() for _ in values]
    return language_thresholds(longs(list(chain.from_iterable(counts.values()))), language_E, t_english)


def test_tail_share_by_hand():
    counts = longs([1, 2, 3, 4, 0])
    assert [tail_share(counts, t) for t in (1, 2, 3, 4, 5)] == [0, 0.1, 0.3, 0.6, 1]
    assert tail_share(longs([0, 0]), 7) == 0


def test_thresholds_by_hand():
    # English: 10 of 100 matches are in entries seen less than 20 times. German below 3: 1 + 1 = 2 of 20 (equal);
    # below 7: 5 of 20 (above). French below 2: 0; below 9: 2 of 11 (above). Polish below 5: 0, below 6: 5 of 11 (above)
    found = thresholds(20, en=[4, 6, 20, 70], de=[1, 1, 3, 8, 7], fr=[2, 9], pl=[6, 5])
    assert found == {"de": 3, "en": 20, "fr": 2, "pl": 5}


def test_a_jump_over_the_share_ends_at_the_count_that_jumps():
    # 1 of 101 is below English's 10 of 100, 101 of 101 is above: t is the count between
    assert thresholds(20, en=[10, 90], xx=[1, 100])["xx"] == 100


@pytest.mark.parametrize("t", [1, 2, 3, 5, 8, 13, 100])
def test_a_language_that_counts_as_english_does_shares_its_tail(t):
    counts = [1, 1, 2, 3, 5, 8, 8, 13]
    found = thresholds(t, en=counts, xx=counts)
    assert found["en"] == t
    assert tail_share(longs(counts), found["xx"]) == tail_share(longs(counts), min(t, 13))
    assert found["xx"] == min(count for count in counts if count >= min(t, 13))


@given(COUNTS, COUNTS, st.integers(1, 60))
def test_the_largest_count_that_is_not_above_englishs_share(english, other, t):
    found = thresholds(t, en=english, xx=other)["xx"]
    matched = sorted({count for count in other if count})
    share = tail_share(longs(english), t)
    if matched and any(english):
        # shares of whole numbers this small are equal as floats when they are equal
        assert found == max(count for count in matched if tail_share(longs(other), count) <= share)
    else:
        assert found == max(other, default=0) or found == 1


@given(COUNTS, COUNTS)
def test_thresholds_grow_with_englishs(english, other):
    found = [thresholds(t, en=english, xx=other)["xx"] for t in range(1, 60)]
    assert found == sorted(found)
    assert found[0] >= 1


@given(COUNTS, COUNTS, st.integers(1, 60))
def test_entries_without_a_match_shift_nothing(english, other, t):
    assert thresholds(t, en=english, xx=other) == thresholds(t, en=[0, *english, 0], xx=[0] * 100 + other)


def test_no_language_is_dropped():
    # by a share that the smallest of its counts is above already, and by zeros that would be the first of its counts
    found = thresholds(2, en=[1, 10**6], tiny=[7], zeros=[0, 0, 0, 9], none=[0, 0])
    assert found == {"en": 2, "tiny": 7, "zeros": 9, "none": 1}


@pytest.mark.parametrize("english", [{}, {"en": [0, 0]}])
def test_without_english_matches_every_pair_is_kept(english):
    assert thresholds(5, de=[1, 40, 3], **english) == {"de": 40, **({"en": 5} if english else {})}


def test_shares_beyond_64_bits():
    big = 3 * 2**40
    assert thresholds(big, en=[2**40, big], xx=[2**40, big])["xx"] == big


def test_thresholds_of_entries_follow_their_language_in_any_order():
    counts, languages = longs([4, 1, 6, 1, 20, 3, 70, 8, 7]), ["en", "de", "en", "de", "en", "de", "en", "de", "de"]
    expected = [20 if language == "en" else 3 for language in languages]
    chunked = pa.chunked_array([languages[:4], languages[4:]])
    for given_ in (languages, pa.array(languages), chunked):
        found = thresholds_of_entries(counts, given_, 20)
        assert found.dtype == np.int64
        assert found.tolist() == expected
    assert thresholds_of_entries(longs([]), [], 20).tolist() == []


@pytest.mark.parametrize(
    ("language", "text"),
    [("zh", "热狗"), ("ja", "ホットドッグ"), ("ja", "いぬ"), ("th", "สุนัข"), ("lo", "ໝາ"), ("km", "ឆ្កែ"), ("my", "ခွေး"),
     ("bo", "ཁྱི"), ("dz", "རོ་ཁྱི"), ("en", "寿司"), ("zh", "T恤"), ("ja", "2024年"), ("zh", "𠮷"), ("zh", "😀")],
)  # fmt: skip
def test_unspaced(language, text):
    assert unspaced(language, text)


@pytest.mark.parametrize(
    ("language", "text"),
    [("en", "hot dog"), ("ko", "개"), ("vi", "chó"), ("hi", "कुत्ता"), ("ar", "كلب"), ("zh", "iPhone"), ("ja", "99"),
     ("en", "😀"), ("zh", ""), ("zh", " "), ("ko", "핫도그"), ("am", "ውሻ"), ("en", "฿")],
)  # fmt: skip
def test_spaced(language, text):
    assert not unspaced(language, text)
