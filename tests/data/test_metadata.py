"""Metadata entries: counts by hand, stable order, and one clear line for what is missing."""

import math
import sys
import types

import pytest

from data import metadata
from data.errors import BackendError, RecipeError, StorageError
from data.match import Matcher
from data.metadata import build_entries
from data.specs import Bigrams, EntryFile, PoolNgrams, WordFrequencies, WordNet

CAPTIONS = ["black dog", "black dog, running", "a black  dog", "black cat"]


def texts(specs, captions=(), mode="exact"):
    return [entry.text for entry in build_entries(specs, captions, mode)]


def test_pool_ngrams_by_hand():
    # "black" in 4 captions, "dog" in 3, "black dog" in 2: two spaces and a comma end an n-gram, "a" and "cat" come once
    assert texts([PoolNgrams(max_words=2, min_count=2)], CAPTIONS) == ["black", "black dog", "dog"]
    assert texts([PoolNgrams(max_words=1, min_count=4)], CAPTIONS) == ["black"]


def test_pool_ngrams_count_captions_not_occurrences():
    assert texts([PoolNgrams(max_words=1, min_count=2)], ["dog dog dog", "cat", "cat"]) == ["cat"]


def test_pool_ngrams_follow_the_matching_mode():
    captions = ["Dog!", "(dog)"]
    assert texts([PoolNgrams(min_count=2)], captions, "relaxed") == ["dog"]
    with pytest.raises(RecipeError, match=r"pool_ngrams.*gives no entry for 2 captions"):
        texts([PoolNgrams(min_count=2)], captions)


@pytest.mark.parametrize("mode", ["exact", "relaxed"])
def test_pool_ngrams_match_as_often_as_they_were_counted(mode):
    captions = [*CAPTIONS, "Black dog.", "the St. Louis arch", "St. Louis"]
    entries = texts([PoolNgrams(max_words=3, min_count=2)], captions, mode)
    _, ids = Matcher(entries, mode).match(captions)
    assert all((ids == number).sum() >= 2 for number in range(len(entries)))


def test_entries_are_sorted_distinct_and_order_free(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("zebra\nblack dog\n spaced  \n\nzebra\r\n")
    specs = [EntryFile(path=str(path)), PoolNgrams(min_count=2)]
    entries = build_entries(specs, CAPTIONS, "exact")
    assert [entry.text for entry in entries] == [" spaced  ", "black", "black dog", "dog", "zebra"]
    assert [entry.source for entry in entries] == ["file", "pool_ngrams", "file", "pool_ngrams", "file"]
    assert build_entries(specs, CAPTIONS[::-1], "exact") == entries


def test_relaxed_entries_spaced_alike_are_one(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('["St. Louis", "st . louis", "DOG", "dog"]')
    assert texts([EntryFile(path=str(path))], mode="relaxed") == ["DOG", "St. Louis"]
    assert len(texts([EntryFile(path=str(path))])) == 4


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.json", b'{"dog": 1}', "not a JSON list of strings"),
        ("a.json", b"[1, 2]", "not a JSON list of strings"),
        ("a.json", b"[", "not an entry file"),
        ("a.json", b"[" * 100_000, "nested deeper"),
        ("a.txt", b"\xff\xfe\x00dog", "not an entry file"),
        ("a.txt", b"\n\n", "gives no entry"),
    ],
)
def test_bad_entry_files(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RecipeError, match=told):
        texts([EntryFile(path=str(tmp_path / name))])


def test_missing_entry_file(tmp_path):
    with pytest.raises(StorageError, match=r"none\.txt.*not found"):
        texts([EntryFile(path=str(tmp_path / "none.txt"))])


def test_word_frequencies():
    pytest.importorskip("wordfreq")
    assert "the" in texts([WordFrequencies(top=10)])
    assert len(texts([WordFrequencies(top=10)])) == 10
    with pytest.raises(RecipeError, match="wordfreq has no 'xx'"):
        texts([WordFrequencies(language="xx")])


def test_bigrams_come_together_more_often_than_by_chance():
    pytest.importorskip("symspellpy")
    strict, loose = set(texts([Bigrams(min_pmi=12)])), set(texts([Bigrams(min_pmi=5)]))
    assert strict < loose
    assert "abdominal pain" in strict
    assert "hot dog" in loose - strict
    assert "of the" not in loose


def test_pmi_by_hand():
    # P(a) = 1/4, P(b) = 1/8, P(a b) = 1/4: 8 times as often as by chance, three bits; c is not known
    unigram, bigram = {"a": 16, "b": 8, "d": 40}, {"a b": 100, "a c": 50, "d d": 250}
    assert metadata._pmi(bigram, unigram) == pytest.approx({"a b": 3.0, "d d": math.log2(0.625 / 0.625**2)})


@pytest.mark.parametrize(
    ("spec", "package", "extra"), [(WordFrequencies(), "wordfreq", "quickstart"), (Bigrams(), "symspellpy", "words")]
)
def test_missing_package_names_the_extra(monkeypatch, spec, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BackendError, match=rf"{package}.*clipworks\[{extra}\]"):
        texts([spec])


def fake_nltk(monkeypatch, all_synsets):
    corpus = types.ModuleType("nltk.corpus")
    corpus.wordnet = types.SimpleNamespace(all_synsets=all_synsets)
    monkeypatch.setitem(sys.modules, "nltk", types.ModuleType("nltk"))
    monkeypatch.setitem(sys.modules, "nltk.corpus", corpus)


def test_wordnet_names(monkeypatch):
    names = ["hot_dog.n.01", "hot_dog.n.02", "u.s..n.01"]
    fake_nltk(monkeypatch, lambda: [types.SimpleNamespace(name=lambda name=name: name) for name in names])
    assert texts([WordNet()]) == ["hot dog", "u.s."]


def test_wordnet_missing(monkeypatch):
    def not_there():
        raise LookupError("Resource wordnet not found")

    fake_nltk(monkeypatch, not_there)
    with pytest.raises(BackendError, match=r"no wordnet corpus here.*downloader wordnet"):
        texts([WordNet()])
    monkeypatch.setitem(sys.modules, "nltk.corpus", None)
    with pytest.raises(BackendError, match="pip install nltk"):
        texts([WordNet()])
