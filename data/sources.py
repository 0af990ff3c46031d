"""What a stage reads from outside, by content: a pool or an entry file that changes gives another fingerprint.

No path is part of it, so a pool that moved is still the same pool.
"""

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any

from data import storage
from data.curation.specs import EntryFile, Metadata, PageTitles, Unigrams, WordNet
from data.errors import RecipeError, ShardError, StorageError
from data.spec import digest
from data.specs import (
    AssociationPool,
    BenchmarkPool,
    ClassFolderPool,
    CompositionPool,
    DigitsPool,
    DirectionPool,
    EmojiPool,
    FolderPool,
    Pool,
    ScenePool,
    ShardPool,
    TextilePool,
)  # fmt: skip

WHOLE_POOL_BYTES = 256 << 20  # local pools below this are hashed whole
EDGE_BYTES = 64 << 10
WORDNET_FILES = ("data.noun", "data.verb", "data.adj", "data.adv")
_REMOTE_READS = 32  # each waits for the network, not for a core


def list_tars(url: str, field: str = "pool.url") -> list[tuple[str, int]]:
    """Return (name, size in bytes) of the tars of a pool.

    Raises:
        ShardError: the folder is not there or holds no tar.
    """
    files = _list_folder(url, field, recursive=False)
    tars = [(name, size) for name, size in files if name.endswith(".tar")]
    if not tars:
        raise ShardError(f"{field}: no .tar file in {url} ({len(files)} other files); give the folder of the shards")
    return tars


def list_images(folder: str) -> list[tuple[str, int]]:
    """Return (relative name, size in bytes) of the pictures below a folder."""
    from data.shards import IMAGE_EXTENSIONS  # loads pyarrow, which the plan of other pools does not need

    return [(name, size) for name, size in list_pool_files(folder) if extension_of(name) in IMAGE_EXTENSIONS]


def list_pool_files(folder: str) -> list[tuple[str, int]]:
    """Return (relative name, size in bytes) of everything below a folder of pictures.

    Raises:
        ShardError: the folder is not there.
    """
    return _list_folder(folder, "pool.images", recursive=True)


def extension_of(name: str) -> str:
    """Lower-case extension without the dot; empty if there is none."""
    base = name.rsplit("/", 1)[-1]
    return base.rsplit(".", 1)[-1].lower() if "." in base else ""


def _list_folder(uri: str, field: str, recursive: bool) -> list[tuple[str, int]]:
    files = storage.list_files(uri, recursive=recursive)
    if files:
        return files  # no more questions: each is a request on object storage
    if not storage.exists(uri):
        raise ShardError(f"{field}: no folder {uri}; check the path")
    if not storage.is_folder(uri):
        raise ShardError(f"{field}: {uri} is a file; give the folder that holds it")
    return files


def pool_identity(pool: Pool) -> dict[str, Any]:
    """Digest of what a pool holds now.

    Raises:
        UserError: the pool is not there, is empty, or a package is missing.
    """
    if isinstance(pool, EmojiPool):
        from data.pools.emoji import package_versions, picture_folders

        picture_folders(pool.vendors)
        return {"packages": package_versions()}
    if isinstance(pool, CompositionPool):
        return {
            "annotations": file_digest(pool.annotations, "pool.annotations"),
            "images": _files_digest(pool.images, list_images(pool.images)),
        }
    if isinstance(pool, DigitsPool | TextilePool | AssociationPool | DirectionPool | ScenePool):
        planner = import_module(f"data.pools.{pool.source}")
        return {"packages": planner.package_versions()}
    if isinstance(pool, ShardPool):
        return {"tars": _files_digest(pool.url, list_tars(pool.url))}
    if isinstance(pool, BenchmarkPool):
        return _benchmark_identity(pool)
    if isinstance(pool, ClassFolderPool):
        return {"images": _files_digest(pool.images, list_images(pool.images))}
    return _folder_identity(pool)


def _benchmark_identity(pool: BenchmarkPool) -> dict[str, Any]:
    """Tars, class names and type; templates are part of a recipe's prompts, not of the pairs."""
    from data.pools.benchmark import files_url, list_benchmark_tars, read_classes

    url = files_url(pool.url)
    tars = [(tar.file, tar.bytes) for tar in list_benchmark_tars(url, pool.splits)]
    classes, kind = read_classes(url)
    return {"tars": _files_digest(url, tars), "classes": digest(list(classes)), "type": kind}


def _folder_identity(pool: FolderPool) -> dict[str, Any]:
    return {
        "captions": file_digest(pool.captions, "pool.captions"),
        "images": _files_digest(pool.images, list_images(pool.images)),
    }


def file_digest(uri: str, field: str) -> str:
    """SHA-256 of a file that a recipe names in `field`."""
    try:
        return storage.sha256(uri)
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError | IsADirectoryError | NotADirectoryError):
            raise RecipeError(f"{field}: no file {uri}; check the path") from error
        raise


def _files_digest(folder: str, files: Sequence[tuple[str, int]]) -> str:
    whole = storage.is_local(folder) and sum(size for _, size in files) < WHOLE_POOL_BYTES

    def content(file: tuple[str, int]) -> str:
        uri = storage.join(storage.normalise(folder), file[0])
        return storage.sha256(uri) if whole else _edges_digest(uri, file[1])

    with ThreadPoolExecutor(1 if storage.is_local(folder) else _REMOTE_READS) as reads:
        contents = list(reads.map(content, files))
    return digest([[name, size, sha256] for (name, size), sha256 in zip(files, contents, strict=True)])


def _edges_digest(uri: str, size_bytes: int) -> str:
    head = storage.read_bytes(uri, 0, min(size_bytes, EDGE_BYTES))
    tail = storage.read_bytes(uri, size_bytes - EDGE_BYTES, size_bytes) if size_bytes > EDGE_BYTES else b""
    return hashlib.sha256(head + tail).hexdigest()


def entry_files_identity(metadata: Iterable[Metadata]) -> dict[str, Any]:
    """Digest of what each metadata source reads from a file or folder, by its position; empty if none does.

    Raises:
        RecipeError: a file or folder is not there, with the field that names it.
    """
    identity: dict[str, Any] = {}
    for position, source in enumerate(metadata):
        if isinstance(source, EntryFile | Unigrams | PageTitles):
            identity[str(position)] = file_digest(source.path, f"metadata.{position}.path")
        elif isinstance(source, WordNet) and source.folder is not None:
            files = wordnet_files(source.folder, f"metadata.{position}.folder")
            identity[str(position)] = digest([storage.sha256(uri) for uri in files])
    return identity


def wordnet_files(folder: str, field: str) -> list[str]:
    """WordNet's four database files in a folder.

    Raises:
        RecipeError: the folder or one of them is not there.
    """
    missing = ", ".join(name for name in WORDNET_FILES if not storage.exists(storage.join(folder, name)))
    if missing:
        told = f"no {missing} in {folder}" if storage.is_folder(folder) else f"no folder {folder}"
        raise RecipeError(f"{field}: {told}; give the folder of WordNet's own {', '.join(WORDNET_FILES)}")
    return [storage.join(folder, name) for name in WORDNET_FILES]
