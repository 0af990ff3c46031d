"""CLIP_benchmark's data sets as they lie: splits of numbered tars, and small text files that say what they hold.

`{url}/{split}/nshards.txt` counts `{url}/{split}/0.tar`, `1.tar` ...; beside the splits lie `classnames.txt`,
`zeroshot_classification_templates.txt` and `dataset_type.txt`, each of which may be missing.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from data import storage
from data.errors import ShardError, StorageError, nearest

TYPES = ("classification", "multilabel", "retrieval")
USUAL_SPLITS = ("train", "val", "validation", "test")
_NSHARDS, _CLASSES, _TEMPLATES = "nshards.txt", "classnames.txt", "zeroshot_classification_templates.txt"
_TYPE = "dataset_type.txt"
_REMOTE_READS = 32  # each waits for the network, not for a core


class Benchmark(NamedTuple):
    """What a data set says of itself.

    `classes` are in the order of their numbers, and names may repeat: where they do, ask for field `cls`. Empty
    `classes` or `templates`: no such file. `splits` are those found; a web address is only asked for the usual ones.
    """

    classes: tuple[str, ...]
    templates: tuple[str, ...]
    type: str
    splits: tuple[str, ...]


class BenchmarkTar(NamedTuple):
    """One tar of a split, its place below the data set's url."""

    split: str
    number: int
    file: str
    bytes: int


def read_benchmark(url: str) -> Benchmark:
    """Read the text files of a data set; no tar is opened.

    Raises:
        ShardError: there is no split, or a file does not hold what it should.
    """
    url = files_url(url)
    classes, kind = read_classes(url)
    splits = tuple(_splits(url))
    if not splits:
        raise ShardError(f"{url}: no split here ({{split}}/{_NSHARDS}); give the folder that holds the splits")
    return Benchmark(classes, _templates(url), kind, splits)


def files_url(url: str) -> str:
    """Where the files are: a dataset hub's page of a branch (`.../tree/main`) serves them under `resolve`."""
    url = storage.normalise(url)
    return url.replace("/tree/", "/resolve/", 1) if url.startswith("https://huggingface.co/datasets/") else url


def read_classes(url: str) -> tuple[tuple[str, ...], str]:
    """Class names in the order of their numbers, and the type of the data set.

    Raises:
        ShardError: a name is empty, or the type is unknown.
    """
    lines = [line.strip() for line in (_text(url, _CLASSES) or "").rstrip().splitlines()]
    if "" in lines:
        number = lines.index("") + 1
        raise ShardError(f"{url}/{_CLASSES}: line {number} is empty, and lines are numbers of classes; name the class")
    kind = (_text(url, _TYPE) or TYPES[0]).strip().lower()
    if kind not in TYPES:
        raise ShardError(f"{url}/{_TYPE}: unknown type {kind!r}{nearest(kind, TYPES)}; it is one of {', '.join(TYPES)}")
    return tuple(lines), kind


def _templates(url: str) -> tuple[str, ...]:
    lines = [line.strip() for line in (_text(url, _TEMPLATES) or "").splitlines()]
    for number, line in enumerate(lines, start=1):
        if line and "{c}" not in line:
            raise ShardError(
                f"{url}/{_TEMPLATES}: line {number} {line!r} has no {{c}}; write it where the class name goes"
            )
    return tuple(line for line in lines if line)


def _splits(url: str) -> list[str]:
    names = USUAL_SPLITS if storage.is_web(url) else storage.list_folders(url)
    return [name for name in names if _text(url, f"{name}/{_NSHARDS}") is not None]


def list_benchmark_tars(url: str, splits: Sequence[str]) -> list[BenchmarkTar]:
    """The tars of these splits, in order.

    Raises:
        ShardError: a split has no nshards.txt, a tar is missing, or a web server does not serve parts of files.
    """
    url, found = files_url(url), list[BenchmarkTar]()
    for split in dict.fromkeys(splits):
        count = _shard_count(url, split)
        sizes = _sizes(url, split, count)
        found += [BenchmarkTar(split, number, f"{split}/{number}.tar", size) for number, size in enumerate(sizes)]
    if not storage.serves_ranges(storage.join(url, found[0].file)):
        raise ShardError(
            f"{url}: the web server sends whole files, not parts of them; copy the data set to a folder or bucket"
        )
    return found


def _shard_count(url: str, split: str) -> int:
    text = _text(url, f"{split}/{_NSHARDS}")
    if text is None:
        known = _splits(url)
        told = nearest(split, known) or (f"; splits are {', '.join(known)}" if known else "; check the address")
        raise ShardError(f"pool.splits: no {_NSHARDS} in {url}/{split}{told}")
    if not text.strip().isdecimal() or not int(text):
        raise ShardError(
            f"{url}/{split}/{_NSHARDS}: {text.strip()[:40]!r} is no number of tars; write how many there are"
        )
    return int(text)


def _sizes(url: str, split: str, count: int) -> list[int]:
    """Size in bytes of each tar: from one listing, or where there is none, asked one by one."""
    folder = storage.join(url, split)
    if not storage.is_web(url):
        listed = dict(storage.list_files(folder))
        return [_found(folder, number, count, lambda number: listed[f"{number}.tar"]) for number in range(count)]

    def ask(number: int) -> int:
        return _found(folder, number, count, lambda number: storage.size_bytes(storage.join(folder, f"{number}.tar")))

    with ThreadPoolExecutor(_REMOTE_READS) as reads:
        return list(reads.map(ask, range(count)))


def _found(folder: str, number: int, count: int, size_of: Callable[[int], int]) -> int:
    try:
        return size_of(number)
    except (KeyError, StorageError) as error:
        if isinstance(error, StorageError) and not _is_missing(error):
            raise
        raise ShardError(
            f"{folder}/{number}.tar is missing: {_NSHARDS} says {count} tars; copy it here or correct the number"
        ) from error


def _text(url: str, name: str) -> str | None:
    """A small text file; None where there is none."""
    uri = storage.join(url, name)
    try:
        return storage.read_bytes(uri).decode("utf-8-sig")
    except StorageError as error:
        if _is_missing(error):
            return None
        raise
    except UnicodeDecodeError as error:
        raise ShardError(f"{uri}: is not UTF-8 text; save it as UTF-8") from error


def _is_missing(error: StorageError) -> bool:
    return isinstance(error.__cause__, FileNotFoundError | NotADirectoryError)
