"""Metadata entries: counts by hand, stable order, and one clear line for what is missing or damaged."""

import gzip
import math
import sys
import types

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.curation import metadata, pool_ngrams
from data.curation.match import Matcher, tokens
from data.curation.metadata import Entry, build_entries
from data.curation.specs import Bigrams, EntryFile, PageTitles, PoolNgrams, Unigrams, WordFrequencies, WordNet
from data.errors import BackendError, RecipeError, StorageError

CAPTIONS = ["black dog", "black dog, running", "a black  dog", "black cat"]


def reader(*captions, languages=None):
    """Captions in one chunk."""
    return lambda: [(list(captions), languages)]


def texts(specs, captions=(), mode="exact"):
    return [entry.text for entry in build_entries(specs, reader(*captions), mode)]


def test_pool_ngrams_by_hand():
    # "black" in 4 captions, "dog" in 3, "black dog" in 2: two spaces and a comma end an n-gram, "a" and "cat" come once
    assert texts([PoolNgrams(max_words=2, min_count=2)], CAPTIONS) == ["black", "black dog", "dog"]
    assert texts([PoolNgrams(max_words=1, min_count=4)], CAPTIONS) == ["black"]


def test_pool_ngrams_count_captions_not_occurrences():
    assert texts([PoolNgrams(max_words=1, min_count=2)], ["dog dog dog", "cat", "cat"]) == ["cat"]


def test_pool_ngrams_follow_the_matching_mode():
    captions = ["Dog!", "(dog)"]
    assert texts([PoolNgrams(min_count=2)], captions, "relaxed") == ["dog"]
    with pytest.raises(RecipeError, match=r"^metadata \(pool_ngrams\): gives no entry"):
        texts([PoolNgrams(min_count=2)], captions)


@pytest.mark.parametrize("mode", ["exact", "relaxed"])
def test_pool_ngrams_match_as_often_as_they_were_counted(mode):
    captions = [*CAPTIONS, "Black dog.", "the St. Louis arch", "St. Louis"]
    entries = texts([PoolNgrams(max_words=3, min_count=2)], captions, mode)
    _, ids = Matcher(entries, mode).match(captions)
    assert all((ids == number).sum() >= 2 for number in range(len(entries)))


def ngrams_one_by_one(captions, mode, longest, least):
    """The rule as it reads, caption by caption."""
    counts = {}
    for caption in captions:
        words, found = tokens(caption, mode), set()
        for start in range(len(words)):
            for end in range(start + 1, min(start + longest, len(words)) + 1):
                if all(any(map(str.isalnum, word)) for word in words[start:end]):
                    found.add(" ".join(words[start:end]))
        for ngram in found:
            counts[ngram] = counts.get(ngram, 0) + 1
    return {ngram for ngram, count in counts.items() if count >= least}


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.text(alphabet="ab \u00df,.\t\u00a0\x00\u72ac-", max_size=12), max_size=12),
    st.integers(1, 5),
    st.integers(1, 3),
    st.sampled_from(["exact", "relaxed"]),
    st.integers(0, 12),
)
def test_pool_ngrams_are_exact_however_the_pool_is_cut(captions, longest, least, mode, cut):
    spec = PoolNgrams(max_words=longest, min_count=least)
    chunks = [(pa.array([*captions[cut:], None], pa.large_string()), None), (captions[:cut], None)]
    expected = ngrams_one_by_one(captions, mode, longest, least)
    assert pool_ngrams.frequent_ngrams([spec], lambda: chunks, mode) == [expected]


def test_pool_ngrams_do_not_depend_on_slices_or_buckets(monkeypatch):
    captions = [f"{word} {number % 7} x{number}" for number in range(60) for word in ("dog", "cat")]
    spec = PoolNgrams(max_words=3, min_count=4)
    expected = ngrams_one_by_one(captions, "exact", 3, 4)
    monkeypatch.setattr(pool_ngrams, "_SLICE_CAPTIONS", 7)
    monkeypatch.setattr(pool_ngrams, "_BUCKET_BITS", 4)  # nearly every n-gram shares its bucket with frequent ones
    assert pool_ngrams.frequent_ngrams([spec], reader(*captions), "exact") == [expected]
    assert 0 < len(expected) < 30


def test_only_n_grams_that_may_be_frequent_are_counted_by_text(monkeypatch):
    """What bounds memory: of 2,100 n-grams that come once, next to none reaches the second count."""
    told, count = [], pool_ngrams._count
    monkeypatch.setattr(pool_ngrams, "_count", lambda *given: told.append(list(count(*given))) or told[-1])
    pool_ngrams.frequent_ngrams([PoolNgrams(min_count=3)], reader(*[f"x{n} y{n}" for n in range(700)]), "exact")
    assert len(told) == 1
    assert len(told[0]) < 5


def test_captions_are_read_only_for_pool_ngrams(tmp_path):
    def read():
        raise AssertionError

    (tmp_path / "a.txt").write_text("dog")
    assert build_entries([EntryFile(path=str(tmp_path / "a.txt"))], read, "exact") == [Entry("dog", "file", "en")]
    with pytest.raises(AssertionError):
        build_entries([PoolNgrams()], read, "exact")


@pytest.mark.parametrize("mode", ["exact", "relaxed"])
def test_by_language_entries_and_ngrams_are_each_languages_own(tmp_path, mode):
    (tmp_path / "de.txt").write_text("gift\nhund\n")
    (tmp_path / "en.txt").write_text("gift\n")
    files = [EntryFile(path=str(tmp_path / f"{language}.txt"), language=language) for language in ("en", "de")]
    ngrams = [PoolNgrams(language=language, max_words=1, min_count=2) for language in ("de", "en", "fr")]
    captions = ["gift chat", "gift chat", "gift", "hund chat", "hund chat", "chat", None, "chat"]
    languages = ["de", "en", "en", "de", "de", None, "en", "fr"]
    found = build_entries([*files, *ngrams], reader(*captions, languages=languages), mode, by_language=True)
    # "chat": 3 in German, 1 in English and French, 1 in no known language
    assert found == [
        Entry("chat", "pool_ngrams", "de"),
        Entry("gift", "file", "de"),
        Entry("hund", "file", "de"),
        Entry("gift", "file", "en"),
    ]
    together = build_entries([*files, *ngrams[:1]], reader(*captions), mode)
    assert together == [
        Entry("chat", "pool_ngrams", "de"),
        Entry("gift", "file", "en"),
        Entry("hund", "file", "de"),
    ]


def test_entries_are_sorted_distinct_and_order_free(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("zebra\nblack dog\n spaced  \n\nzebra\r\n")
    specs = [EntryFile(path=str(path)), PoolNgrams(min_count=2)]
    entries = build_entries(specs, reader(*CAPTIONS), "exact")
    assert [entry.text for entry in entries] == [" spaced  ", "black", "black dog", "dog", "zebra"]
    assert [entry.source for entry in entries] == ["file", "pool_ngrams", "file", "pool_ngrams", "file"]
    assert build_entries(specs, reader(*CAPTIONS[::-1]), "exact") == entries


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


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_unigrams_and_titles(tmp_path, packed, end):
    def written(name, *lines):
        content = end.join(lines).encode("utf-8-sig")
        path = tmp_path / (name + ".gz" * packed)
        path.write_bytes(gzip.compress(content) if packed else content)
        return str(path)

    words = written("words", "dog\t100", "", "cat\t99", "h\u00fcndchen\t250", "dog\t3")
    assert texts([Unigrams(path=words)]) == ["dog", "h\u00fcndchen"]
    assert texts([Unigrams(path=words, min_count=99)]) == ["cat", "dog", "h\u00fcndchen"]
    titles = written("titles", "Hot_dog\t70", "C++\t71", "Rare\t69", "_\t80")
    assert texts([PageTitles(path=titles)]) == ["C++", "Hot dog"]
    found = build_entries([PageTitles(path=titles, language="de")], reader(), "exact")
    assert found[0] == Entry("C++", "titles", "de")


@pytest.mark.parametrize("kind", [Unigrams, PageTitles])
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"dog\t5\ncat 5\n", r"line 2 is 'cat 5'; give a \w+, a tab and a whole number"),
        (b"dog\t\n", "line 1 is"),
        (b"dog\t-5\n", "line 1 is"),
        (b"dog\t5.5\n", "line 1 is"),
        (b"dog\t\xc2\xb2\n", "line 1 is"),
        (b"dog\t" + b"9" * 5000, "line 1 is"),
        (b"\t5\n", "line 1 is"),
        (b"en\tdog\t5\n", "line 1 is"),
        (b"dog\t5\n\xff\t5\n", "line 2 is not UTF-8"),
        (b"", "gives no entry"),
    ],
)
def test_bad_counted_files(tmp_path, kind, content, told):
    (tmp_path / "list.tsv").write_bytes(content)
    with pytest.raises(RecipeError, match=told) as caught:
        texts([kind(path=str(tmp_path / "list.tsv"))])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "content", [b"dog\t5\n", gzip.compress(b"dog\t500\n" * 99)[:-9], gzip.compress(b"dog\t5\n")[:-8] + b"\0" * 8]
)
def test_damaged_gzip(tmp_path, content):
    (tmp_path / "list.gz").write_bytes(content)
    with pytest.raises(RecipeError, match=r"list\.gz: is not whole gzip"):
        texts([Unigrams(path=str(tmp_path / "list.gz"))])


@pytest.mark.parametrize("kind", [Unigrams, PageTitles])
def test_missing_counted_file(tmp_path, kind):
    with pytest.raises(StorageError, match=r"none\.gz.*not found"):
        texts([kind(path=str(tmp_path / "none.gz"))])


def test_word_frequencies():
    pytest.importorskip("wordfreq")
    assert "the" in texts([WordFrequencies(top=10)])
    assert len(texts([WordFrequencies(top=10)])) == 10
    with pytest.raises(RecipeError, match="wordfreq has no 'xx'"):
        texts([WordFrequencies(language="xx")])


def test_words_per_million():
    wordfreq = pytest.importorskip("wordfreq")
    frequent = texts([WordFrequencies(top=2_000, min_per_million=100)])
    assert 100 < len(frequent) < 2_000
    assert min(wordfreq.word_frequency(word, "en") for word in frequent) >= 100e-6
    with pytest.raises(RecipeError, match="gives no entry"):
        texts([WordFrequencies(min_per_million=1e6)])


@pytest.mark.parametrize("spec", [Bigrams(language="de"), WordNet(language="de")])
def test_english_sources_are_no_other_language(spec):
    with pytest.raises(RecipeError, match=r"^metadata\.language: 'de', but .* English"):
        texts([spec])


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


NUMBERS = [str(number) for number in range(100)]


def test_wordnet_names(monkeypatch):
    names = ["hot_dog.n.01", "hot_dog.n.02", "u.s..n.01"]
    fake_nltk(monkeypatch, lambda: [types.SimpleNamespace(name=lambda name=name: name) for name in names])
    assert texts([WordNet(numbers=False)]) == ["hot dog", "u.s."]
    assert texts([WordNet()]) == sorted([*NUMBERS, "hot dog", "u.s."])


LICENCE = "  1 This software and database is being provided to you, the LICENSEE, by  \n"
SYNSETS = {
    "data.noun": "07697537 13 n 02 Hot_Dog 0 red_hot 0 001 @ 07695965 n 0000 | a frankfurter  \n"
    "00002137 03 n 01 12-tone_music 0 000 | gloss; with 9 n 01 words_of_its_own 0  \n",
    "data.verb": "00001740 29 v 01 run 0 000 01 + 02 00 | move  \n",
    "data.adj": "00020141 00 s 02 Outback(a) 0 remote 0 000 | far  \n00024701 00 s 01 used_to(p) 0 000 | so\n"
    "00025245 00 a 01 galore(ip) 0 000 | many\n",
    "data.adv": "00002029 02 r 03 CE 0 C.E. 0 Common_Era 0 000 | era  \n",
}


def wordnet_folder(folder, **changed):
    for name, synsets in SYNSETS.items():
        (folder / name).write_text(LICENCE + changed.get(name.removeprefix("data."), synsets))
    return str(folder)


def test_wordnet_folder_has_the_first_word_of_each_synset(tmp_path):
    expected = ["12-tone music", "ce", "galore", "hot dog", "outback", "run", "used to"]
    assert texts([WordNet(folder=wordnet_folder(tmp_path), numbers=False)]) == expected
    assert texts([WordNet(folder=str(tmp_path), language="xx")]) == sorted([*NUMBERS, *expected])


@pytest.mark.parametrize(
    "line", ["dog", "00001740 29 v 01 run", "0001740 29 v 01 run 0 000 | move", "run%2:38:00:: 1 2 3"]
)
def test_wordnet_folder_with_other_lines(tmp_path, line):
    folder = wordnet_folder(tmp_path, verb=SYNSETS["data.verb"] + line)
    with pytest.raises(RecipeError, match=r"data\.verb: line 3 is .*, no synset"):
        texts([WordNet(folder=folder)])


def test_wordnet_folder_of_something_else(tmp_path):
    with pytest.raises(RecipeError, match=r"no data\.noun, data\.verb, data\.adj, data\.adv in"):
        texts([WordNet(folder=str(tmp_path))])
    with pytest.raises(RecipeError, match="no folder"):
        texts([WordNet(folder=str(tmp_path / "none"))])


def test_wordnet_missing(monkeypatch):
    def not_there():
        raise LookupError("Resource wordnet not found")

    fake_nltk(monkeypatch, not_there)
    with pytest.raises(BackendError, match=r"no wordnet corpus here.*downloader wordnet"):
        texts([WordNet()])
    monkeypatch.setitem(sys.modules, "nltk.corpus", None)
    with pytest.raises(BackendError, match="pip install nltk"):
        texts([WordNet()])
