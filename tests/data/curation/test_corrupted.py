"""A pool that is damaged in every way we know of: curation finishes, and every loss has its shard and its reason."""

import struct
import zlib
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from data.artifacts import Artifact
from data.events import read_events
from data.selection import read_selection
from data.shards import ShardSet

_MEGABYTE = 1 << 20


def bomb(side: int) -> bytes:
    """A PNG of less than 100 bytes that says it has side x side pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")


def tar_of_four(world: ModuleType, name: str, start: int) -> bytes:
    pairs = (world.pair(f"{name}{n}", world.picture(start + n), f"a dog number {n}") for n in range(4))
    content: bytes = world.tar_of(*pairs)
    return content


def damaged_tars(world: ModuleType) -> dict[str, bytes]:
    picture, pair, tar_of = world.picture, world.pair, world.tar_of
    header, payload = tar_of_four(world, "header", 20), tar_of_four(world, "payload", 30)
    truncated = tar_of_four(world, "truncated", 10)
    return {
        "00-good": tar_of(*(pair(f"good{n}", picture(n), f"a dog and a cat, {n}") for n in range(6))),
        "01-truncated": truncated[: world.offset_of(truncated, "truncated3.png") + 512 + 40],
        "02-header": world.flipped(header, world.offset_of(header, "header1.png") + 3),
        "03-payload": world.flipped(payload, world.offset_of(payload, "payload2.png") + 512 + 60),
        "04-pictures": tar_of(
            pair("zero", b"", "a dog"), pair("page", b"<html>not found</html>", "a dog"),
            pair("bomb", bomb(30_000), "a dog"), pair("fine", picture(40), "a dog"),
        ),
        "05-twice": tar_of(
            pair("twice", picture(50), "a dog, the first"), pair("other", picture(51), "a cat"),
            pair("twice", picture(52), "a dog, the second"), pair("good0", picture(53), "a dog of another tar"),
        ),
        "06-names": tar_of(
            pair("../../etc/passwd", picture(60), "a dog"), pair("/root", picture(61), "a dog"),
            pair("safe", picture(62), "a dog"),
        ),
        "07-captions": tar_of(
            pair("latin", picture(70), b"un caf\xe9"), pair("none", picture(71), None),
            pair("huge", picture(72), "dog " * (_MEGABYTE // 2)), pair("blank", picture(73), "  \n"),
            pair("large", picture(74), "a cat " + "x" * 1000),
        ),
        "08-no-tar": b"this is no tar, whatever its name says. " * 40,
        "09-empty": b"",
        "10-only-an-end": bytes(1024),
    }  # fmt: skip


@pytest.fixture(scope="module")
def made(world: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    folder = tmp_path_factory.mktemp("corrupted")
    pool = world.write_tars(folder / "pool", damaged_tars(world))
    stages = world.specs(pool, world.write_entries(folder), t=1000, max_caption_bytes=_MEGABYTE)
    found: dict[str, Artifact] = world.run(stages, folder / "root")
    return found


_LOST = [
    ("01-truncated", "truncated3.png", "torn_tar"), ("01-truncated", "end of archive", "torn_tar"),
    ("02-header", "bytes 3072 to 4096", "bad_header"), ("02-header", "header1", "missing_image"),
    ("03-payload", "payload2", "unreadable_image"),
    ("04-pictures", "zero", "unreadable_image"), ("04-pictures", "page", "unreadable_image"),
    ("04-pictures", "bomb", "image_too_large"),
    ("05-twice", "twice", "duplicate_uid"), ("05-twice", "good0", "duplicate_uid"),
    *(("06-names", f"../../etc/passwd.{extension}", "unsafe_name") for extension in ("png", "txt", "json")),
    *(("06-names", f"/root.{extension}", "unsafe_name") for extension in ("png", "txt", "json")),
    ("07-captions", "latin", "caption_not_utf8"), ("07-captions", "none", "missing_caption"),
    ("07-captions", "huge", "caption_too_large"), ("07-captions", "blank", "empty_caption"),
    ("08-no-tar", "bytes 0 to 1600", "bad_header"),
    ("09-empty", "end of archive", "torn_tar"),
]  # fmt: skip
_PUT_IN = 6 + 4 + 4 + 4 + 4 + 4 + 3 + 5  # pairs of the eight tars that are tars
# what is lost beside a pair that has a row of its own: an archive without its end, bytes, or further members
_NO_PAIRS = {"end of archive", "bytes 3072 to 4096", "bytes 0 to 1600"} | {
    f"{name}.{ext}" for name in ("../../etc/passwd", "/root") for ext in ("txt", "json")
}


def test_every_loss_is_listed_with_its_shard_and_reason(made: dict[str, Artifact]) -> None:
    dropped = [tuple(row.values()) for row in ShardSet(made["pairs"]).dropped().to_pylist()]
    assert dropped == _LOST


def test_pairs_and_losses_add_up_to_what_was_put_in(made: dict[str, Artifact]) -> None:
    counts, reasons = made["pairs"].record.counts, Counter(reason for _, _, reason in _LOST)
    assert {name: count for name, count in counts.items() if name.startswith("dropped_")} == {
        f"dropped_{reason}": count for reason, count in reasons.items()
    }
    assert counts["dropped"] == len(_LOST)
    lost_pairs = [member for _, member, _ in _LOST if member not in _NO_PAIRS]
    assert counts["pairs"] + len(lost_pairs) == _PUT_IN
    assert counts["damaged_shards"] == 4  # 01, 02, 08 and 09; an archive that holds nothing is whole


def test_what_is_left_is_whole(world: ModuleType, made: dict[str, Artifact]) -> None:
    pairs = ShardSet(made["pairs"])
    uids = [f"good{n}" for n in range(6)] + ["truncated0", "truncated1", "truncated2", "header0", "header2", "header3"]
    uids += ["payload0", "payload1", "payload3", "fine", "twice", "other", "safe", "large"]
    assert pairs.index()["uid"].to_pylist() == uids
    captions = dict(zip(*(pairs.captions()[name].to_pylist() for name in ("uid", "caption")), strict=True))
    assert captions["twice"] == "a dog, the first"
    assert captions["good0"] == "a dog and a cat, 0"
    at = {row["uid"]: (row["shard"], row["offset"], row["bytes"]) for row in pairs.index().to_pylist()}
    numbers = {"truncated2": 12, "header0": 20, "header2": 22, "payload3": 33, "fine": 40, "twice": 50, "safe": 62}
    for uid, number in numbers.items():
        assert pairs.read_image(*at[uid]) == world.picture(number)


def test_every_pair_goes_through_every_stage(made: dict[str, Artifact]) -> None:
    counts = {name: artifact.record.counts for name, artifact in made.items()}
    assert counts["inspection"]["pairs"] == counts["split"]["pairs"] == counts["pairs"]["pairs"] == 20
    assert counts["inspection"]["damaged_shards"] == 0
    assert counts["matches"]["pairs"] == counts["duplicates"]["pairs"] == counts["split"]["train"]
    selection = counts["selection"]
    dropped = sum(count for name, count in selection.items() if name.startswith("dropped_"))
    assert selection["kept"] + dropped == selection["pairs"] == counts["split"]["train"]
    assert selection["kept"] > 0


# ---------------------------------------------------------------------------------------- damage after ingest


@pytest.fixture(scope="module")
def damaged(world: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Artifact], Path]:
    """A good pool of which, after ingest, one tar has a flipped byte, one is cut short, and one is gone."""
    folder = tmp_path_factory.mktemp("damaged")
    tars = {name: tar_of_four(world, name, 100 * n) for n, name in enumerate(("whole", "flip", "short", "gone"))}
    stages = world.specs(world.write_tars(folder / "pool", tars), world.write_entries(folder), t=1000)
    later = {name: stages.pop(name) for name in list(stages) if name != "pairs"}
    made = world.run(stages, folder / "root")
    tar = folder / "pool" / "flip.tar"
    tar.write_bytes(world.flipped(tars["flip"], world.offset_of(tars["flip"], "flip2.png") + 512 + 60))
    (folder / "pool" / "short.tar").write_bytes(tars["short"][: world.offset_of(tars["short"], "short2.png") + 520])
    (folder / "pool" / "gone.tar").unlink()
    return made | world.run(later, folder / "root", made=made), folder / "root"


def test_damage_after_ingest_is_noticed_and_the_shard_named(damaged: tuple[dict[str, Artifact], Path]) -> None:
    made, root = damaged
    found = made["inspection"].record
    assert found.metrics["damaged"] == {"flip": "checksum_mismatch", "short": "size_mismatch", "gone": "missing_tar"}
    assert found.counts["damaged_shards"] == 3
    events = read_events(str(root / ".events" / f"{Path(made['inspection'].uri).name}.jsonl"))
    told = [event["message"] for event in events if event["event"] == "message"]
    for shard, lost in (("flip", 0), ("short", 2), ("gone", 4)):
        lines = [line for line in told if f"shard {shard} " in line]
        assert len(lines) == 1
        assert f"{lost} of 4 pairs are lost" in lines[0]
    assert not any("shard whole " in line for line in told)


def test_pictures_lost_after_ingest_are_dropped_with_a_reason(damaged: tuple[dict[str, Artifact], Path]) -> None:
    made, _ = damaged
    counts = made["inspection"].record.counts
    assert (counts["pairs"], counts["problem_unreadable"], counts["problem_unreadable_image"]) == (16, 6, 1)
    rows = {row["uid"]: row["reason"] for row in read_selection(made["selection"]).to_pylist()}
    lost = {"flip2", "short2", "short3", "gone0", "gone1", "gone2", "gone3"}
    assert {uid for uid, reason in rows.items() if reason == "decodable"} == lost & rows.keys()
    assert len(lost & rows.keys()) > 3
    dropped = sum(count for name, count in made["selection"].record.counts.items() if name.startswith("dropped_"))
    assert made["selection"].record.counts["kept"] + dropped == len(rows)
