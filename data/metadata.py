"""Where metadata entries come from: the pool's own n-grams, word lists that packages ship, WordNet, a user's file.

Entries are sorted and distinct, so that an entry's id depends on nothing but the set of entries.
"""

import importlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from typing import Any, NamedTuple

from data import storage
from data.errors import BackendError, RecipeError
from data.match import Mode, space_relaxed, tokens
from data.pools.text import parse_json
from data.specs import Bigrams, EntryFile, Metadata, PoolNgrams, WordFrequencies, WordNet


class Entry(NamedTuple):
    """A metadata entry and the first source that has it."""

    text: str
    source: str


def build_entries(specs: Sequence[Metadata], captions: Sequence[str], mode: Mode) -> list[Entry]:
    """Distinct entries of all sources, sorted; in relaxed mode entries that are spaced alike count as one.

    Raises:
        BackendError: a package or corpus is not installed.
        RecipeError: a file is not a list of entries, or there is no entry at all.
    """
    found: dict[str, Entry] = {}
    for spec in specs:
        for text in sorted(_SOURCES[spec.source](spec, captions, mode)):
            key = text if mode == "exact" else space_relaxed(text)
            if key:
                found.setdefault(key, Entry(text, spec.source))
    if not found:
        names = ", ".join(spec.source for spec in specs)
        raise RecipeError(f"balance.metadata ({names}): gives no entry for {len(captions)} captions; add a source")
    return sorted(found.values())


def _pool_ngrams(spec: PoolNgrams, captions: Sequence[str], mode: Mode) -> set[str]:
    """N-grams of the captions' own tokens, a caption counted once; tokens without a letter or digit end an n-gram."""
    counts: Counter[str] = Counter()
    for caption, times in Counter(captions).items():
        for ngram in set(_ngrams(tokens(caption, mode), spec.max_words)):
            counts[ngram] += times
    return {ngram for ngram, count in counts.items() if count >= spec.min_count}


def _ngrams(words: list[str], longest: int) -> Iterator[str]:
    is_word = [any(char.isalnum() for char in word) for word in words]
    for start in range(len(words)):
        for end in range(start + 1, min(start + longest, len(words)) + 1):
            if not is_word[end - 1]:
                break
            yield " ".join(words[start:end])


def _word_frequencies(spec: WordFrequencies, _captions: Sequence[str], _mode: Mode) -> set[str]:
    wordfreq = _package("wordfreq", "quickstart")
    try:
        return set(wordfreq.top_n_list(spec.language, spec.top))
    except LookupError as error:
        known = ", ".join(sorted(wordfreq.available_languages()))
        raise RecipeError(f"balance.metadata.language: wordfreq has no {spec.language!r}; it has {known}") from error


def _bigrams(spec: Bigrams, _captions: Sequence[str], _mode: Mode) -> set[str]:
    """Bigrams whose words come together more often than by chance."""
    folder = resources.files(_package("symspellpy", "words"))
    unigram = dict(_counts(folder.joinpath("frequency_dictionary_en_82_765.txt").read_text("utf-8-sig")))
    bigram = dict(_counts(folder.joinpath("frequency_bigramdictionary_en_243_342.txt").read_text("utf-8-sig")))
    return {text for text, bits in _pmi(bigram, unigram).items() if bits >= spec.min_pmi}


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


def _wordnet(_spec: WordNet, _captions: Sequence[str], _mode: Mode) -> set[str]:
    fix = "pip install nltk, then python -m nltk.downloader wordnet"
    try:
        corpus: Any = importlib.import_module("nltk.corpus").wordnet
        # a name is `hot_dog.n.01`
        return {synset.name().rsplit(".", 2)[0].replace("_", " ") for synset in corpus.all_synsets()}
    except ImportError as error:
        raise BackendError(f"balance.metadata: wordnet needs the package nltk and its corpus: {fix}") from error
    except LookupError as error:
        raise BackendError(f"balance.metadata: nltk has no wordnet corpus here: {fix}") from error


def _entry_file(spec: EntryFile, _captions: Sequence[str], _mode: Mode) -> set[str]:
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
        raise BackendError(f"balance.metadata: needs the package {name}, which is not installed: {fix}") from error


_SOURCES: dict[str, Callable[[Any, Sequence[str], Mode], set[str]]] = {
    "pool_ngrams": _pool_ngrams,
    "wordfreq": _word_frequencies,
    "bigrams": _bigrams,
    "wordnet": _wordnet,
    "file": _entry_file,
}
