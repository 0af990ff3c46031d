"""Inspection: what a look says of pictures whose numbers are known, of hostile ones, and of shards that are damaged."""

import hashlib
import io
import os
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagehash
import numpy as np
import pytest
from PIL import Image, ImageFilter
from sklearn.datasets import load_sample_image

from data import storage
from data.artifacts import Artifact, Output, Record
from data.curation import inspection
from data.curation.languages import detect_languages
from data.curation.looks import Look, look_at, sharpness
from data.curation.specs import InspectSpec
from data.curation.tables import INSPECTION_SCHEMA, all_tables
from data.errors import ShardError, StorageError
from data.events import read_events
from data.place import Place
from data.shards import Pair, ShardSet, write_manifest, write_shard
from data.stage import run_stage

MAX_PIXELS = 1_000_000


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def photograph(side: int = 400) -> Image.Image:
    return Image.fromarray(load_sample_image("china.jpg")).crop((0, 0, 427, 427)).resize((side, side))


def noise(width: int = 64, height: int = 48, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def look(content: bytes) -> Look:
    return look_at(content, MAX_PIXELS)


def distance(a: Look, b: Look) -> int:
    assert a.phash is not None and b.phash is not None
    return (a.phash ^ b.phash).bit_count()


# ------------------------------------------------------------------------------------------------------------ numbers


def test_hand_computed_numbers() -> None:
    halves = Image.fromarray(
        np.repeat(np.array([[0, 100]], np.uint8), 2, axis=0).repeat(2, axis=1)
    )  # 2 rows of 0 0 100 100
    found = look(encoded(halves, "PNG"))
    assert (found.problem, found.width, found.height) == ("", 4, 2)
    assert found.entropy == 1  # two values, as often
    assert found.sharpness == 5000  # the Laplacian is 0, 100, -100, 0 in each row
    flat = look(encoded(Image.new("RGB", (20, 10), "red"), "PNG"))
    assert (flat.width, flat.height, flat.entropy, flat.sharpness) == (20, 10, 0, 0)
    assert look(encoded(Image.new("L", (1, 1)), "PNG")).sharpness == 0


def test_the_hash_is_that_of_imagehash() -> None:
    picture = photograph(200)
    assert f"{look(encoded(picture, 'PNG')).phash:016x}" == str(imagehash.phash(picture))


def test_blur_lowers_sharpness_at_every_size() -> None:
    for side in (200, 400, 900):
        sharp, blurred = photograph(side), photograph(side).filter(ImageFilter.GaussianBlur(side / 50))
        values = [look(encoded(picture, "JPEG", quality=95)).sharpness for picture in (sharp, blurred)]
        assert values[1] < 20 < 500 < values[0]
    assert sharpness(photograph().convert("L")) > sharpness(photograph().convert("L").filter(ImageFilter.BLUR))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("side", [511, 520, 1000])
def test_a_jpeg_decoded_smaller_gives_the_numbers_of_exact_decoding(side: int, progressive: bool) -> None:
    jpeg = encoded(photograph(side), "JPEG", quality=90, progressive=progressive)
    exact = look(encoded(Image.open(io.BytesIO(jpeg)), "PNG"))
    found = look(jpeg)
    assert (found.width, found.height) == (exact.width, exact.height) == (side, side)
    assert distance(found, exact) <= 2
    assert found.entropy == pytest.approx(exact.entropy, abs=0.05)
    assert found.sharpness == pytest.approx(exact.sharpness, rel=0.25)


def test_near_copies_hash_near_and_other_pictures_far() -> None:
    first = look(encoded(photograph(), "PNG"))
    for copy in (
        encoded(photograph(), "JPEG", quality=40),
        encoded(photograph(1000), "WEBP"),
        encoded(photograph(120), "PNG"),
    ):
        assert distance(first, look(copy)) <= 3
    flower = Image.fromarray(load_sample_image("flower.jpg"))
    assert distance(first, look(encoded(flower, "PNG"))) > 16


def test_every_mode_of_picture() -> None:
    grey = photograph(128).convert("L")
    expected = look(encoded(grey, "PNG"))
    deep = Image.fromarray((np.asarray(grey).astype(np.uint16) << 8) + 37)
    assert deep.mode == "I;16" and look(encoded(deep, "PNG")) == expected
    opaque = Image.merge("LA", (grey, Image.new("L", grey.size, 255)))
    assert look(encoded(opaque, "PNG")) == expected
    palette = encoded(photograph(128).quantize(64), "PNG")
    cmyk = encoded(photograph(128).convert("CMYK"), "JPEG", quality=95)
    for content in (palette, cmyk, encoded(photograph(128), "WEBP", quality=95)):
        assert distance(look(content), expected) <= 4
    see_through = encoded(Image.new("RGBA", (300, 40), (0, 0, 0, 0)), "PNG")
    assert look(see_through) == look(encoded(Image.new("L", (300, 40), 255), "PNG"))  # transparency on white


# ------------------------------------------------------------------------------------------------------------ hostile


def bomb(width: int, height: int) -> bytes:
    """A PNG that says it is huge, with one row of pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_hostile_pictures_are_answers() -> None:
    assert look(bomb(60_000, 60_000)) == Look("image_too_large")
    assert look(bomb(2_000, 2_000)) == Look("image_too_large")
    assert look(encoded(Image.new("L", (1001, 1000)), "JPEG")) == Look("image_too_large")
    assert look(encoded(Image.new("L", (1000, 1000)), "JPEG")).problem == ""
    broken = [b"", b"\xff\xd8\xff", b"<svg/>", encoded(noise(), "GIF"), bomb(100, 100), os.urandom(500)]
    assert [look(content) for content in broken] == [Look("unreadable_image")] * len(broken)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {}), ("WEBP", {"lossless": True})],
)
def test_a_file_that_ends_early_has_a_problem(kind: str, options: dict[str, object]) -> None:
    whole = encoded(photograph(700), kind, **options)  # large: a JPEG is decoded at a half
    assert look(whole).problem == ""
    least = 5 if kind == "PNG" else 2  # the last 4 bytes of a PNG are the checksum of nothing
    for lost in (least, 13, 200, len(whole) // 2, len(whole) - 30):
        assert look(whole[:-lost]) == Look("unreadable_image"), lost


def test_a_flipped_bit_in_a_png_is_noticed() -> None:
    whole = bytearray(encoded(noise(), "PNG"))
    whole[len(whole) // 2] ^= 1
    assert look(bytes(whole)) == Look("unreadable_image")


def test_a_harmless_oddity_of_a_jpeg_is_no_problem() -> None:
    whole = encoded(photograph(600), "JPEG")
    assert whole[:2] == b"\xff\xd8"
    odd = whole[:-2] + b"\x00\x00" + whole[-2:]  # bytes before the end marker, which libjpeg warns of
    assert look(odd).problem == "" and distance(look(odd), look(whole)) <= 2
    assert look(whole + b"trailing").problem == ""


def test_nothing_that_is_done_to_a_picture_raises() -> None:
    draw = random.Random(0)
    seeds = [encoded(noise(), kind) for kind in ("JPEG", "PNG", "WEBP")] + [
        encoded(noise().convert("P"), "PNG", transparency=3)
    ]
    problems = set()
    for _ in range(300):
        content = bytearray(draw.choice(seeds))
        for _ in range(draw.choice([1, 5])):
            content[draw.randrange(min(len(content), draw.choice([60, 10**6])))] = draw.randrange(256)
        problems.add(look(bytes(content)).problem)
    assert problems <= {"", "unreadable_image", "image_too_large"} and len(problems) > 1


# ----------------------------------------------------------------------------------------------------------- language


def test_languages_of_captions() -> None:
    texts = {
        "en": "A small dog is running on the green grass", "de": "Ein kleiner Hund läuft über die grüne Wiese",
        "fr": "Un petit chien court dans l'herbe verte", "es": "Un perro pequeño corre sobre la hierba verde",
        "ru": "Маленькая собака бежит по зелёной траве", "ja": "小さな犬が緑の草の上を走っています",
        "ko": "작은 개가 푸른 잔디 위를 달리고 있다", "hi": "एक छोटा कुत्ता हरी घास पर दौड़ रहा है",
    }  # fmt: skip
    languages, scores = detect_languages(texts.values())
    assert languages == list(texts) and all(score is not None and 0.5 < score <= 1 for score in scores)
    odd = ["A SMALL DOG IS RUNNING\nON THE GREEN GRASS", "a dog and a cat " * 10_000, "\x00", "1234 !!", None, ""]
    languages, scores = detect_languages(odd)
    assert languages[:2] == ["en", "en"] and languages[4:] == [None, None] == scores[4:]
    assert all(score is not None and score < 0.3 for score in scores[2:4])


# -------------------------------------------------------------------------------------------------------------- stage


def write_pairs(root: Path | str, shards: int = 3, pairs: int = 4) -> Artifact:
    """A shard set of small pictures; the second pair has no caption, the third a blank one and a rewrite."""
    out = Output(str(root), "pairs", "p" * 64)
    captions = [
        {"alt": "a dog on the grass"},
        {},
        {"alt": "  ", "rewrite": "ein Hund auf der Wiese"},
        {"alt": "собака"},
    ]

    def pair(shard: int, number: int) -> Pair:
        content = encoded(noise(seed=shard * pairs + number), "PNG")
        return Pair(f"s{shard}-{number}", content, "png", captions[number % 4], {})

    made = [write_shard(out.uri, f"{s:05d}", [pair(s, n) for n in range(pairs)]) for s in range(shards)]
    write_manifest(out.uri, made, [])
    return out.commit(Record(kind="shard_set", stage="ingest", revision=1, fingerprint="p" * 64, config={}))


def inspect(root: Path | str, pairs: Artifact, **fields: object) -> Artifact:
    return run_stage("inspect", InspectSpec(pairs="pairs", **fields), {"pairs": pairs.uri}, Place(root=str(root)))


def rows_of(artifact: Artifact, pairs: Artifact) -> list[dict[str, object]]:
    tables = list(all_tables(artifact, "inspection", ShardSet(pairs)))
    assert all(table.schema == INSPECTION_SCHEMA for table in tables)
    return [row for table in tables for row in table.to_pylist()]


def messages(root: Path) -> list[str]:
    return [e["message"] for path in (root / ".events").glob("inspect*.jsonl") for e in read_events(str(path))
            if e["event"] == "message"]  # fmt: skip


def tar_of(pairs: Artifact, number: int) -> Path:
    return Path(pairs.at("shards", f"{number:05d}.tar"))


def test_one_row_a_pair_in_the_order_of_the_index(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path)
    artifact = inspect(tmp_path, pairs)
    rows = rows_of(artifact, pairs)
    assert [row["uid"] for row in rows] == ShardSet(pairs).index()["uid"].to_pylist()
    assert [row["language"] for row in rows[:4]] == ["en", None, None, "ru"]
    for number, row in enumerate(rows):
        content = encoded(noise(seed=number), "PNG")
        assert row["content"] == hashlib.blake2b(content, digest_size=16).digest()
        assert {name: row[name] for name in ("problem", "width", "height", "phash")} == {
            name: value
            for name, value in look(content)._asdict().items()
            if name in ("problem", "width", "height", "phash")
        }
    assert artifact.record.counts == {
        "pairs": 12, "captions": 6, "shards": 3, "damaged_shards": 0,
        "problem_unreadable": 0, "problem_unreadable_image": 0, "problem_image_too_large": 0,
    }  # fmt: skip
    assert artifact.record.metrics == {"languages": {"en": 3, "ru": 3}, "damaged": {}}
    assert messages(tmp_path) == []


def test_captions_of_another_source_and_smaller_pictures(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path, shards=1)
    rows = rows_of(inspect(tmp_path, pairs, caption_source="rewrite", max_image_pixels=64 * 48 - 1), pairs)
    assert [row["language"] for row in rows] == [None, None, "de", None]
    assert {row["problem"] for row in rows} == {"image_too_large"} and {row["width"] for row in rows} == {None}
    assert all(row["content"] for row in rows)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip_picture(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 100] ^= 1
    path.write_bytes(content)


def flip_padding(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")


@pytest.mark.parametrize(
    ("damage", "reason", "unreadable", "unreadable_image"),
    [
        (Path.unlink, "missing_tar", 4, 0),
        (truncate, "size_mismatch", 2, 0),
        (flip_picture, "checksum_mismatch", 0, 1),
        (flip_padding, "checksum_mismatch", 0, 0),
    ],
)
def test_damage_is_counted_named_and_not_fatal(
    tmp_path: Path, damage: Callable[[Path], object], reason: str, unreadable: int, unreadable_image: int
) -> None:
    pairs = write_pairs(tmp_path)
    whole = rows_of(inspect(tmp_path, pairs), pairs)
    damage(tar_of(pairs, 1))
    artifact = inspect(tmp_path, pairs, max_image_pixels=MAX_PIXELS)  # another fingerprint, so that it is made
    counts = artifact.record.counts
    assert (counts["damaged_shards"], counts["shards"], counts["pairs"]) == (1, 3, 12)
    assert (counts["problem_unreadable"], counts["problem_unreadable_image"]) == (unreadable, unreadable_image)
    assert artifact.record.metrics["damaged"] == {"00001": reason}
    (message,) = messages(tmp_path)
    assert "shard 00001" in message and str(tar_of(pairs, 1)) in message and f"{unreadable} of 4 pairs" in message
    changed = [(before, row) for before, row in zip(whole, rows_of(artifact, pairs), strict=True) if before != row]
    assert len(changed) == unreadable + unreadable_image
    for before, row in changed:
        assert row["uid"] == before["uid"] and row["uid"].startswith("s1-") and row["language"] == before["language"]
        assert (row["content"] is None) == (row["problem"] == "unreadable")


def test_pools_that_are_gone_end_the_stage_and_are_looked_at_again(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path)
    Path(pairs.at("shards")).rename(tmp_path / "elsewhere")
    with pytest.raises(ShardError, match=r"no picture can be read; shard 00000 .*: the tar is gone; 4 of 4 pairs"):
        inspect(tmp_path, pairs)
    (tmp_path / "elsewhere").rename(pairs.at("shards"))
    assert inspect(tmp_path, pairs).record.counts["damaged_shards"] == 0


def test_a_store_that_does_not_answer_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = write_pairs(tmp_path)

    def down(url: str) -> int:
        with storage.explained(url, "read"):
            raise ConnectionError("no route to host")

    monkeypatch.setattr(storage, "size_bytes", down)
    with pytest.raises(StorageError, match="no route to host"):
        inspect(tmp_path, pairs)


def test_damage_on_object_storage(seaweed: Any) -> None:
    root = f"s3://{seaweed.bucket}/inspection"
    pairs = write_pairs(root)
    content = storage.read_bytes(pairs.at("shards", "00001.tar"))
    storage.write_bytes(pairs.at("shards", "00001.tar"), content[: len(content) // 2])
    storage.remove(pairs.at("shards", "00002.tar"))
    artifact = inspect(root, pairs)
    assert artifact.record.metrics["damaged"] == {"00001": "size_mismatch", "00002": "missing_tar"}
    problems = [row["problem"] for row in rows_of(artifact, pairs)]
    assert problems == [""] * 6 + ["unreadable"] * 6


def test_after_a_kill_only_missing_shards_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = write_pairs(tmp_path / "a")
    expected = inspect(tmp_path / "a", undisturbed)
    pairs, done, real = write_pairs(tmp_path / "b"), list[int](), inspection.inspect_shard

    def killed(shard_set: ShardSet, spec: InspectSpec, out_uri: str, number: int) -> object:
        if number == 2 and not done.count(0) > 1 and len(done) == 2:
            raise KeyboardInterrupt
        done.append(number)
        return real(shard_set, spec, out_uri, number)

    monkeypatch.setattr(inspection, "inspect_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        inspect(tmp_path / "b", pairs)
    done.append(-1)
    artifact = inspect(tmp_path / "b", pairs)
    assert done == [0, 1, -1, 2]
    assert artifact.record.checksums == expected.record.checksums
    assert artifact.record.counts == expected.record.counts


def test_an_index_out_of_order_gives_rows_in_its_own_order(tmp_path: Path) -> None:
    pairs = ShardSet(write_pairs(tmp_path, shards=1))
    index = pairs.index()
    backwards = index.take(list(range(index.num_rows))[::-1])
    in_order, damaged = inspection._look_through(pairs, 0, index, MAX_PIXELS)
    assert damaged == "" and len({seen.content for seen in in_order}) == 4
    assert inspection._look_through(pairs, 0, backwards, MAX_PIXELS) == (in_order[::-1], "")


def test_an_index_that_lies_is_damage(tmp_path: Path) -> None:
    pairs = ShardSet(write_pairs(tmp_path, shards=1))
    index = pairs.index()
    for name, lie in (("bytes", 10**15), ("bytes", -1), ("offset", 10**15)):
        values = index[name].to_pylist()
        values[1] = lie
        lying = index.set_column(index.schema.get_field_index(name), index.schema.field(name), [values])
        seen, damaged = inspection._look_through(pairs, 0, lying, MAX_PIXELS)
        assert damaged == "wrong_offset" and [picture.look.problem for picture in seen] == ["", "unreadable", "", ""]
