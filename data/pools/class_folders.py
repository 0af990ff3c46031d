"""Labelled pictures from a folder a class, the layout of torchvision's ImageFolder."""

import hashlib
from collections import Counter

from data import storage
from data.errors import RecipeError
from data.pools import Dropped, Plan, Planned
from data.pools.text import is_utf8, printable
from data.shards import IMAGE_EXTENSIONS
from data.sources import extension_of, list_pool_files
from data.specs import ClassFolderPool

_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}


def plan(pool: ClassFolderPool) -> Plan:
    """Plan every picture below a class's folder, however deep. `cls` is the class's place among the sorted names."""
    found: list[tuple[str, str, str]] = []
    dropped = []
    for path, _ in list_pool_files(pool.images):
        *folders, _name = path.split("/")
        reason = _problem(path, len(folders), pool)
        if reason:
            dropped.append(Dropped("", printable(path), reason))
        else:
            split = folders.pop(0) if pool.split_folders else ""
            found.append((path, split, folders[0]))
    classes = sorted({name for _, _, name in found})
    _require_classes(pool, classes)
    number = {name: row for row, name in enumerate(classes)}
    pairs = [_planned(pool, path, split, name, number[name]) for path, split, name in found]
    return Plan(pairs, dropped, _card(pairs, classes))


def _problem(path: str, depth: int, pool: ClassFolderPool) -> str:
    if not is_utf8(path):
        return "unsafe_path"
    if extension_of(path) not in IMAGE_EXTENSIONS:
        return "unsupported_format"
    return "" if depth > pool.split_folders else "no_class_folder"


def _require_classes(pool: ClassFolderPool, classes: list[str]) -> None:
    """Refuse splits taken for classes: every number made of them would be wrong, and look well."""
    if classes and not pool.split_folders and {name.lower() for name in classes} <= _SPLITS:
        named = ", ".join(classes)
        raise RecipeError(f"pool.split_folders: the folders of {pool.images} are splits ({named}); set it to true")


def _planned(pool: ClassFolderPool, path: str, split: str, name: str, number: int) -> Planned:
    uid = hashlib.sha256(path.encode()).hexdigest()[:16]
    meta = {"class": name, "cls": number, **({"split": split} if split else {})}
    return Planned(uid, storage.join(storage.normalise(pool.images), path), extension_of(path), path, {}, meta)


def _card(pairs: list[Planned], classes: list[str]) -> dict[str, object]:
    splits = Counter(pair.meta["split"] for pair in pairs if "split" in pair.meta)
    card = {"title": "Pictures in a folder a class", "classes": len(classes), "licence": "not stated"}
    return card | ({"splits": dict(sorted(splits.items()))} if splits else {})
