"""Where metadata entries come from: the pool's own n-grams, word lists that packages ship, WordNet, a user's files.

Entries are sorted and distinct, so that an entry's id depends on nothing but the set of entries.
"""

import gzip
import importlib
import math
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

from data import storage
from data.curation.match import Mode, space_relaxed
from data.curation.pool_ngrams import ReadCaptions, frequent_ngrams
from data.curation.specs import (
    Bigrams,
    EntryFile,
    Metadata,
    PageTitles,
    PoolNgrams,
    Unigrams,
    WordFrequencies,
    WordNet,
)
from data.errors import BackendError, RecipeError
from data.pools.text import parse_json
from data.sources import wordnet_files

_MARKERS = ("(a)", "(p)", "(ip)")  # where an adjective may stand; no part of the word
# wndb(5WN): offset, lexicographer file, type, number of words (hex), first word; then the rest
_SYNSET = re.compile(r"\d{8} \d\d [nvasr] [0-9a-f]{2} (\S+) ")


class Entry(NamedTuple):
    """A metadata entry, the first source that has it, and that source's language."""

    text: str
    source: str
    language: str


def build_entries(specs: Sequence[Metadata], read: ReadCaptions, mode: Mode, by_language: bool = False) -> list[Entry]:
    """Distinct entries of all sources, sorted; in relaxed mode entries that are spaced alike count as one.

    `by_language` (MetaCLIP 2): distinct and sorted by (language, text), and n-grams of the pool come from captions in
    their own language. `read` gives the pool's captions in chunks, with languages where these count; it is called
    only where the pool's n-grams are a source, and then twice.

    Raises:
        BackendError: a package or corpus is not installed.
        RecipeError: a file is not a list of entries, or there is no entry at all.
    """
    ngrams = iter(frequent_ngrams([s for s in specs if isinstance(s, PoolNgrams)], read, mode, by_language))
    found: dict[tuple[str, str], Entry] = {}
    for spec in specs:
        texts = next(ngrams) if isinstance(spec, PoolNgrams) else _SOURCES[spec.source](spec)
        for text in sorted(texts):
            key = text if mode == "exact" else space_relaxed(text)
            if key:
                found.setdefault((spec.language if by_language else "", key), Entry(text, spec.source, spec.language))
    if not found:
        names = ", ".join(spec.source for spec in specs)
        raise RecipeError(f"metadata ({names}): gives no entry; add a source, or lower a source's minimum")
    return sorted(found.values(), key=lambda entry: (entry.language if by_language else "", entry.text))


def _word_frequencies(spec: WordFrequencies) -> set[str]:
    wordfreq = _package("wordfreq", "quickstart")
    try:
        words, frequencies = wordfreq.top_n_list(spec.language, spec.top), wordfreq.get_frequency_dict(spec.language)
    except LookupError as error:
        known = ", ".join(sorted(wordfreq.available_languages()))
        raise RecipeError(f"metadata.language: wordfreq has no {spec.language!r}; it has {known}") from error
    return {word for word in words if frequencies[word] * 1e6 >= spec.min_per_million}


def _unigrams(spec: Unigrams) -> set[str]:
    return {word for word, count in _counted_lines(spec.path, "word") if count >= spec.min_count}


def _page_titles(spec: PageTitles) -> set[str]:
    return {title.replace("_", " ").strip() for title, n in _counted_lines(spec.path, "title") if n >= spec.min_views}


def _counted_lines(uri: str, what: str) -> Iterator[tuple[str, int]]:
    """(text, count) of each line `text<TAB>count`; blank lines are left out, and a line stands for itself alone."""
    for number, line in _lines(uri):
        text, _, count = line.rpartition("\t")
        if line and (not text.strip() or "\t" in text or not re.fullmatch("[0-9]{1,18}", count)):
            raise RecipeError(f"{uri}: line {number} is {line[:80]!r}; give a {what}, a tab and a whole number a line")
        if line:
            yield text, int(count)


def _lines(uri: str) -> Iterator[tuple[int, str]]:
    """Numbered lines of a UTF-8 text file, also one in gzip's form (`.gz`), which may be larger than memory."""
    with storage.open_read(uri) as stream:
        lines = gzip.GzipFile(fileobj=stream) if uri.endswith(".gz") else stream
        try:
            for number, line in enumerate(lines, 1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise RecipeError(f"{uri}: line {number} is not UTF-8 ({error.reason}); convert the file") from error
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise RecipeError(f"{uri}: is not whole gzip ({error}); make the file again") from error


def _bigrams(spec: Bigrams) -> set[str]:
    """Bigrams whose words come together more often than by chance."""
    _english_only(spec.language, "bigrams: symspellpy's counts")
    folder = resources.files(_package("symspellpy", "words"))
    unigram = dict(_counts(folder.joinpath("frequency_dictionary_en_82_765.txt").read_text("utf-8-sig")))
    bigram = dict(_counts(folder.joinpath("frequency_bigramdictionary_en_243_342.txt").read_text("utf-8-sig")))
    return {text for text, bits in _pmi(bigram, unigram).items() if bits >= spec.min_pmi}


def _english_only(language: str, what: str) -> None:
    if language != "en":
        raise RecipeError(f"metadata.language: {language!r}, but {what} are English; leave the language out")


def _counts(text: str) -> Iterator[tuple[str, int]]:
    """Lines of `words count`."""
    for line in text.splitlines():
        words, _, count = line.rpartition(" ")
        if words:
            yield words, int(count)


def _pmi(bigram: Mapping[str, int], unigram: Mapping[str, int]) -> dict[str, float]:
    """Pointwise mutual information log2(P(ab) / (P(a) P(b))) in bits, of bigrams whose words are both known.

    Each list has its own total: the bigrams were counted in a larger corpus ("of the" is there more often than "of").
    """
    scale = math.log2(sum(unigram.values())) * 2 - math.log2(sum(bigram.values()))
    found = {}
    for text, count in bigram.items():
        first, second = (unigram.get(word, 0) for word in text.split(" "))
        if first and second:
            found[text] = math.log2(count) - math.log2(first) - math.log2(second) + scale
    return found


def _wordnet(spec: WordNet) -> set[str]:
    lemmas = _nltk_lemmas(spec) if spec.folder is None else _folder_lemmas(spec.folder)
    numbers = map(str, range(100)) if spec.numbers else ()
    return {lemma.replace("_", " ") for lemma in lemmas} | set(numbers)


def _nltk_lemmas(spec: WordNet) -> set[str]:
    _english_only(spec.language, "wordnet: the words of NLTK's corpus")
    fix = "pip install nltk, then python -m nltk.downloader wordnet; or give the folder of WordNet's own files"
    try:
        corpus: Any = importlib.import_module("nltk.corpus").wordnet
        # a name is `hot_dog.n.01`
        return {synset.name().rsplit(".", 2)[0] for synset in corpus.all_synsets()}
    except ImportError as error:
        raise BackendError(f"metadata: wordnet needs the package nltk and its corpus: {fix}") from error
    except LookupError as error:
        raise BackendError(f"metadata: nltk has no wordnet corpus here: {fix}") from error


def _folder_lemmas(folder: str) -> Iterator[str]:
    """The first word of every synset, as NLTK names synsets: lower case, without an adjective's marker."""
    for uri in wordnet_files(folder, "metadata.folder"):
        for number, line in _lines(uri):
            if line.startswith("  "):  # the licence
                continue
            found = _SYNSET.match(line)
            if not found:
                raise RecipeError(f"{uri}: line {number} is {line[:80]!r}, no synset; give WordNet's own file")
            marker = next((marker for marker in _MARKERS if found[1].endswith(marker)), "")
            yield found[1].removesuffix(marker).lower()


def _entry_file(spec: EntryFile) -> set[str]:
    try:
        text = storage.read_bytes(spec.path).decode("utf-8-sig")
        is_list = spec.path.endswith(".json")
        entries = parse_json(text.encode()) if is_list else text.replace("\r\n", "\n").split("\n")
    except ValueError as error:  # not UTF-8, not JSON
        raise RecipeError(f"{spec.path}: not an entry file ({error}); give UTF-8 text or a .json list") from error
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise RecipeError(f"{spec.path}: not a JSON list of strings; give one, or a text file with one entry a line")
    return set(entries)


def _package(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        fix = f"pip install 'clipworks[{extra}]'"
        raise BackendError(f"metadata: needs the package {name}, which is not installed: {fix}") from error


_SOURCES: dict[str, Callable[[Any], set[str]]] = {
    "wordfreq": _word_frequencies,
    "unigrams": _unigrams,
    "bigrams": _bigrams,
    "titles": _page_titles,
    "wordnet": _wordnet,
    "file": _entry_file,
}
