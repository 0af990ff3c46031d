"""Pairs from a folder of images and a table of captions (csv, tsv, parquet or jsonl).

Rows that name the same picture are one pair: its captions are `alt`, `alt2`, `alt3` ... in the order of the file, those
of `more_captions` likewise, and the other columns of its first row are its metadata; a column of uids keeps the rows
apart. Values of csv and tsv stay text as written ("007" is not 7).
"""

import csv
import hashlib
import io
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from data import storage
from data.errors import RecipeError, ShardError, nearest
from data.pools import Dropped, Plan, Planned
from data.pools.text import caption_problem, clean_json, is_writable_uid, parse_json
from data.shards import IMAGE_EXTENSIONS, read_parquet
from data.sources import extension_of, list_images
from data.specs import FolderPool

FORMATS = ("csv", "tsv", "parquet", "jsonl")
Row = dict[str, Any]


def plan(pool: FolderPool, max_caption_bytes: int) -> Plan:
    """Plan the pairs of a folder pool: paths and captions checked, pictures not read yet."""
    images = {name for name, _ in list_images(pool.images)}
    rows, dropped = read_rows(pool)
    pairs: dict[str, Planned] = {}
    for number, row in enumerate(rows, start=1):
        reason = _add(pairs, pool, row, images, max_caption_bytes)
        if reason:
            dropped.append(Dropped("", f"row {number}: {_text(row.get(pool.image_column))[:200]}", reason))
    card = {
        "title": "A folder of images with a table of captions",
        "rows": len(rows),
        "licence": "not stated",
    }
    return Plan(list(pairs.values()), dropped, card)


def _add(pairs: dict[str, Planned], pool: FolderPool, row: Row, images: set[str], max_caption_bytes: int) -> str:
    """Add a row to the pairs; return "" or the reason why it cannot be used."""
    path, captions = _text(row.get(pool.image_column)), _captions(pool, row)
    problem = _path_problem(path, images) or _caption_problem(captions, max_caption_bytes)
    if problem:
        return problem
    path = posixpath.normpath(path)
    uid = hashlib.sha256(path.encode()).hexdigest()[:16] if pool.uid_column is None else _text(row.get(pool.uid_column))
    if not is_writable_uid(uid):
        return "bad_uid"
    known = pairs.get(uid)
    if known is None:
        uri = storage.join(storage.normalise(pool.images), path)
        pairs[uid] = Planned(uid, uri, extension_of(path), path, captions, _meta(row, _used_columns(pool)))
        return ""
    if known.member != path:
        return "duplicate_uid"
    joined = _joined(known.captions, captions)
    if len(joined) == len(known.captions):
        return "duplicate_caption" if captions else "duplicate_row"
    pairs[uid] = known._replace(captions=joined)
    return ""


def _captions(pool: FolderPool, row: Row) -> dict[str, str]:
    """Captions of a row by source. An empty cell of a further column is no caption, an empty `alt` is a problem."""
    alt = {} if pool.caption_column is None else {"alt": _text(row.get(pool.caption_column))}
    more = {source: _text(row.get(column)) for source, column in pool.more_captions.items()}
    return alt | {source: text for source, text in more.items() if text.strip()}


def _caption_problem(captions: Mapping[str, str], max_bytes: int) -> str:
    return next(filter(None, (caption_problem(text, max_bytes) for text in captions.values())), "")


def _joined(known: Mapping[str, str], new: Mapping[str, str]) -> dict[str, str]:
    """Captions of a picture with those of another row: what its source does not have yet is numbered from 2."""
    joined = dict(known)
    for source, text in new.items():
        own = [name for name in joined if re.fullmatch(re.escape(source) + r"\d*", name)]
        if text not in (joined[name] for name in own):
            joined[f"{source}{len(own) + 1}" if own else source] = text
    return joined


def _used_columns(pool: FolderPool) -> set[str]:
    used = (pool.image_column, pool.caption_column, pool.uid_column, *pool.more_captions.values())
    return {column for column in used if column is not None}


def _path_problem(path: str, images: set[str]) -> str:
    if not path.strip():
        return "missing_image_path"
    if path.startswith("/") or ".." in path.split("/") or "\\" in path or "\0" in path:
        return "unsafe_path"
    if extension_of(path) not in IMAGE_EXTENSIONS:
        return "unsupported_format"
    return "" if posixpath.normpath(path) in images else "missing_image"


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _meta(row: Row, used: set[str]) -> dict[str, Any]:
    left = clean_json({name: value for name, value in row.items() if name not in used and not isinstance(value, bytes)})
    return {name: value for name, value in left.items() if value is not None}


def read_rows(pool: FolderPool) -> tuple[list[Row], list[Dropped]]:
    """Read the table of captions; rows that cannot be read are dropped.

    Raises:
        RecipeError: another kind of file, or a column that is not there.
        ShardError: the file cannot be parsed.
    """
    kind = extension_of(pool.captions)
    if kind not in FORMATS:
        raise RecipeError(f"pool.captions: {pool.captions} is none of .{', .'.join(FORMATS)}; convert it")
    if not storage.exists(pool.captions):
        raise RecipeError(f"pool.captions: no file {pool.captions}; check the path")
    dropped: list[Dropped] = []
    try:
        if kind == "parquet":
            table = read_parquet(pool.captions)
            columns, rows = list(table.column_names), table.to_pylist()
        elif kind == "jsonl":
            rows = list(_jsonl_rows(storage.read_bytes(pool.captions), dropped))
            columns = list(dict.fromkeys(name for row in rows for name in row))
        else:
            columns, lines = _csv_lines(storage.read_bytes(pool.captions), "," if kind == "csv" else "\t")
            rows = list(_csv_rows(columns, lines, dropped))
    except (pa.ArrowException, csv.Error, OSError) as error:
        raise ShardError(
            f"pool.captions: {pool.captions} cannot be parsed as {kind}: {error}".split("\n")[0]
        ) from error
    for field in ("image_column", "caption_column", "uid_column"):
        _require_column(field, getattr(pool, field), columns)
    for source, column in pool.more_captions.items():
        _require_column(f"more_captions.{source}", column, columns)
    return rows, dropped


def _require_column(field: str, column: str | None, columns: list[str]) -> None:
    if column is not None and column not in columns:
        known = ", ".join(map(repr, columns)) or "none"
        raise RecipeError(f"pool.{field}: no column {column!r}{nearest(column, columns)}; the file has {known}")


def _csv_lines(content: bytes, delimiter: str) -> tuple[list[str], Iterator[list[str]]]:
    text = content.decode("utf-8-sig", "surrogateescape")
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    return [name.strip() for name in next(lines, [])], lines


def _csv_rows(columns: list[str], lines: Iterable[list[str]], dropped: list[Dropped]) -> Iterator[Row]:
    for number, values in enumerate(lines, start=1):
        if len(values) == len(columns):
            yield dict(zip(columns, values, strict=True))
        elif values:  # an empty line is no row
            dropped.append(Dropped("", f"row {number}: {len(values)} values for {len(columns)} columns", "bad_row"))


def _jsonl_rows(content: bytes, dropped: list[Dropped]) -> Iterator[Row]:
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            yield row
        else:
            dropped.append(Dropped("", f"line {number}", "bad_json"))
