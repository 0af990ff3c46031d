"""Tars: ours read by another library, and a walk that survives what is hostile or broken."""

import io
import json
import random
import tarfile
import zlib
from pathlib import Path

import pytest
from PIL import Image

from data.artifacts import Artifact, Record
from data.errors import ShardError
from data.pools.image import image_problem
from data.pools.tar import BLOCK, Member, Tape, parse_header, walk
from data.pools.webdataset import Contents, Limits, read_shard, split_name
from data.shards import Pair, ShardSet, write_manifest, write_shard

LIMITS = Limits(max_image_pixels=1_000_000, max_caption_bytes=100)


def picture(shade: int = 0, kind: str = "PNG", size: int = 8) -> bytes:
    sink = io.BytesIO()
    noise = random.Random(shade).randbytes(3 * size * size)
    Image.frombytes("RGB", (size, size), noise).save(sink, kind)
    return sink.getvalue()


def pair(uid: str, **captions: str) -> Pair:
    return Pair(uid, picture(len(uid)), "png", captions or {"alt": f"caption of {uid}"}, {"n": 1})


def tar_bytes(members: list[tuple[str, bytes]]) -> bytearray:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return bytearray(sink.getvalue())


def three_pairs() -> list[tuple[str, bytes]]:
    return [
        (f"{uid}.{ext}", content) for uid in "abc" for ext, content in (("png", picture()), ("txt", uid.encode() * 9))
    ]


def members_of(content: bytes) -> list[Member]:
    return list(walk(Tape(io.BytesIO(content), len(content)), lambda *_: True))


def contents_of(content: bytes, limits: Limits = LIMITS) -> Contents:
    return read_shard(Tape(io.BytesIO(content), len(content)), "s", limits, set())


def found(contents: Contents) -> tuple[list[str], dict[str, str]]:
    return [row.uid for row in contents.rows], {row.member: row.reason for row in contents.dropped}


def test_our_tars_read_with_webdataset_give_the_same_pairs(tmp_path: Path) -> None:
    import webdataset

    pairs = [pair("x1"), pair("y", alt="ein Äpfel", alias="red\napple"), pair("ünïcode-" + "long" * 40, alias="no alt")]
    shard = write_shard(str(tmp_path), "00000", pairs)
    read = list(webdataset.WebDataset(str(tmp_path / shard.url), shardshuffle=False))
    assert [entry["__key__"] for entry in read] == [p.uid for p in pairs]
    assert [entry["png"] for entry in read] == [p.image for p in pairs]
    assert [entry["txt"].decode() for entry in read if "txt" in entry] == [p.captions["alt"] for p in pairs[:2]]
    assert json.loads(read[1]["json"]) == {"n": 1, "captions": {"alias": "red\napple"}}


def test_our_tars_read_with_our_reader_give_the_same_pairs(tmp_path: Path) -> None:
    pairs = [pair("x1"), pair("y", alt="ein Äpfel", alias="red apple"), pair("ünïcode-" + "long" * 40, alias="x")]
    shard = write_shard(str(tmp_path), "00000", pairs)
    content = (tmp_path / shard.url).read_bytes()
    contents = contents_of(content)
    assert [(r.uid, r.captions, json.loads(r.meta)) for r in contents.rows] == [
        (p.uid, p.captions, p.meta) for p in pairs
    ]
    assert [content[r.offset : r.offset + r.bytes] for r in contents.rows] == [p.image for p in pairs]
    assert contents.dropped == []


def test_equal_pairs_give_equal_tars(tmp_path: Path) -> None:
    first, second = (write_shard(str(tmp_path / name), "0", [pair("a"), pair("b")]) for name in ("one", "two"))
    assert first == second
    assert write_shard(str(tmp_path / "three"), "0", [pair("b"), pair("a")]).sha256 != first.sha256


def test_pictures_are_read_by_offset_and_a_torn_tar_says_so(tmp_path: Path) -> None:
    pairs = [pair("a"), pair("bb")]
    shard = write_shard(str(tmp_path), "0", pairs)
    write_manifest(str(tmp_path), [shard], [])
    record = Record(kind="shard_set", stage="ingest", revision=1, fingerprint="0" * 64, config={})
    shards = ShardSet(Artifact(str(tmp_path), record))
    rows = shards.index().to_pylist()
    assert [shards.read_image(row["shard"], row["offset"], row["bytes"]) for row in rows] == [p.image for p in pairs]
    tar = tmp_path / shard.url
    tar.write_bytes(tar.read_bytes()[: rows[1]["offset"] + 1])
    with pytest.raises(ShardError, match="torn"):
        shards.read_image(0, rows[1]["offset"], rows[1]["bytes"])


def test_walk_agrees_with_tarfile() -> None:
    members = [*three_pairs(), ("d" * 150 + "/é.txt", b"x" * 1000), ("empty.txt", b"")]
    content = tar_bytes(members)
    assert [(m.name, m.payload, m.problem) for m in members_of(content)] == [(n, c, "") for n, c in members]
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        offsets = [info.offset_data for info in tar.getmembers()]
    assert [m.offset for m in members_of(content)] == offsets


@pytest.mark.parametrize("position", [0, 100, 124, 130, 150, 156, 257, 400, 511])
def test_a_flipped_header_byte_costs_one_pair_and_is_named(position: int) -> None:
    content = tar_bytes(three_pairs())
    start = next(m.offset for m in members_of(content) if m.name == "b.png") - BLOCK
    content[start + position] ^= 0x41
    uids, reasons = found(contents_of(content))
    assert uids == ["a", "c"]
    lost = -(-len(picture()) // BLOCK) * BLOCK + BLOCK
    assert reasons == {f"bytes {start} to {start + lost}": "bad_header", "b": "missing_image"}


def test_every_flipped_header_byte_is_noticed() -> None:
    clean = tar_bytes([("a.txt", b"x")])
    for position in range(BLOCK):
        content = bytearray(clean)
        content[position] ^= 1
        is_filler = position == 155  # the blank after the checksum
        assert (parse_header(bytes(content[:BLOCK])) is None) != is_filler, position


def test_a_truncated_tar_keeps_what_is_whole_at_every_length() -> None:
    content = tar_bytes(three_pairs())
    ends = {m.name: m.offset + m.size for m in members_of(content)}
    for length in range(0, max(ends.values()) + BLOCK, 97):
        uids, reasons = found(contents_of(content[:length]))
        whole = [uid for uid in "abc" if length >= ends[f"{uid}.txt"]]
        assert uids == whole, length
        assert "torn_tar" in reasons.values(), length


def test_a_hole_in_the_middle_is_not_the_end() -> None:
    content = tar_bytes(three_pairs())
    offsets = {m.name: m.offset for m in members_of(content)}
    start, end = offsets["b.png"] - BLOCK, offsets["c.png"] - BLOCK
    content[start:end] = bytes(end - start)
    assert found(contents_of(content)) == (["a", "c"], {f"bytes {start} to {end}": "data_after_end"})


def test_a_header_that_lies_about_its_size_does_not_hide_the_rest() -> None:
    content = tar_bytes(three_pairs())
    info = tarfile.TarInfo("b.png")
    info.size = 1 << 60
    start = next(m.offset for m in members_of(content) if m.name == "b.png") - BLOCK
    content[start : start + BLOCK] = info.tobuf(tarfile.GNU_FORMAT)
    assert found(contents_of(content)) == (["a", "c"], {"b.png": "torn_tar", "b": "missing_image"})


def test_garbage_is_no_pair() -> None:
    uids, reasons = found(contents_of(b"\x01" * 5000))
    assert uids == []
    assert "bad_header" in reasons.values()


@pytest.mark.parametrize("name", ["../b.png", "/etc/b.png", "x/../../b.png", "b\x01.png", "b\udcff.png"])
def test_unsafe_names_are_refused(name: str) -> None:
    sink = io.BytesIO()
    with tarfile.open(
        fileobj=sink, mode="w", encoding="utf-8", errors="surrogateescape", format=tarfile.GNU_FORMAT
    ) as tar:
        for member, content in (("a.png", picture()), ("a.txt", b"fine"), (name, picture())):
            info = tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    contents = contents_of(sink.getvalue())
    assert [row.uid for row in contents.rows] == ["a"]
    assert [row.reason for row in contents.dropped] == ["unsafe_name"]
    contents.dropped[0].member.encode()  # can be written to a table


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(kind: bytes) -> None:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as tar:
        info = tarfile.TarInfo("a.png")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    assert found(contents_of(sink.getvalue())) == ([], {"a.png": "not_a_file"})


def test_a_broken_extended_header_makes_the_name_unsafe() -> None:
    content = tar_bytes([("é.png", picture())])
    at = content.index(b"path=")
    content[at - 3 : at] = b"99 "
    assert [m.problem for m in members_of(content)] == ["unsafe_name"]


def group(**members: bytes) -> bytearray:
    return tar_bytes([(f"k.{ext.replace('_', '.')}", content) for ext, content in members.items()])


def document(**fields: object) -> bytes:
    return json.dumps(fields).encode()


@pytest.mark.parametrize(
    ("members", "reasons"),
    [
        ({"png": picture()}, {"k": "missing_caption"}),
        ({"png": picture(), "txt": b" \n"}, {"k": "empty_caption"}),
        ({"png": picture(), "txt": b"\xff\xfe"}, {"k": "caption_not_utf8"}),
        ({"png": picture(), "txt": b"x" * 101}, {"k": "caption_too_large"}),
        ({"png": picture(), "json": b'{"caption": "\\ud800"}'}, {"k": "caption_not_utf8"}),
        ({"png": b"", "txt": b"x"}, {"k": "unreadable_image"}),
        ({"png": picture()[:-20], "txt": b"x"}, {"k": "unreadable_image"}),
        ({"jpg": picture(kind="JPEG", size=64)[:-200], "txt": b"x"}, {"k": "unreadable_image"}),
        ({"txt": b"x"}, {"k": "missing_image"}),
        ({"png": picture(), "json": document(caption="x", status="failed_to_download")}, {"k": "status_not_success"}),
        ({"png": picture(), "json": b"{" * 9}, {"k.json": "bad_json", "k": "missing_caption"}),
    ],
)
def test_unusable_pairs_have_a_reason(members: dict[str, bytes], reasons: dict[str, str]) -> None:
    assert found(contents_of(group(**members))) == ([], reasons)


@pytest.mark.parametrize(
    ("members", "reasons"),
    [
        ({"png": picture(), "txt": b"x", "json": b"[1]"}, {"k.json": "bad_json"}),
        ({"png": picture(), "txt": b"x", "json": b"[" * 100_000}, {"k.json": "bad_json"}),
        ({"png": picture(), "txt": b"x", "json": b" " * (2 << 20)}, {"k.json": "metadata_too_large"}),
        ({"png": picture(), "jpg": picture(kind="JPEG"), "txt": b"x"}, {"k.jpg": "extra_image"}),
        ({"PNG": picture(), "txt": b"x"}, {}),
    ],
)
def test_a_pair_stands_without_what_it_does_not_need(members: dict[str, bytes], reasons: dict[str, str]) -> None:
    assert found(contents_of(group(**members))) == (["k"], reasons)


def test_img2dataset_members_become_captions_and_metadata() -> None:
    fields = {
        "caption": "from json",
        "url": "u",
        "similarity": float("nan"),
        "status": "success",
        "key": "k",
        "exif": "{}",
    }
    contents = contents_of(group(jpg=picture(kind="JPEG"), txt=b"from txt\n", json=document(**fields), seg_png=b"?"))
    assert contents.rows[0].captions == {"alt": "from txt"}
    assert json.loads(contents.rows[0].meta) == {
        "url": "u",
        "similarity": None,
        "status": "success",
        "key": "k",
        "exif": "{}",
    }
    assert contents.ignored_members == 1
    without_txt = contents_of(group(jpg=picture(kind="JPEG"), json=document(**fields, captions={"rewrite": "r"})))
    assert without_txt.rows[0].captions == {"alt": "from json", "rewrite": "r"}


def test_repeated_keys_and_members_keep_the_first() -> None:
    again = [("a.png", picture()), ("a.txt", b"again")]
    assert found(contents_of(tar_bytes([*three_pairs(), *again]))) == (["a", "b", "c"], {"a": "duplicate_uid"})
    assert found(contents_of(tar_bytes([("a.png", picture()), ("a.png", picture()), ("a.txt", b"x")])))[1] == {
        "a.png": "duplicate_member"
    }


def test_key_is_the_path_up_to_the_first_dot_of_the_name() -> None:
    assert split_name("v1.0/dir/a.b.JPG") == ("v1.0/dir/a", "b.jpg")
    assert split_name("noext") == ("noext", "")


def huge_png(width: int, height: int) -> bytes:
    content = bytearray(picture())
    content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


@pytest.mark.parametrize("side", [1_001, 50_000, 2_000_000_000])
def test_a_huge_image_is_refused_by_its_header(side: int) -> None:
    assert image_problem(huge_png(side, side), 1_000_000) == "image_too_large"
    assert image_problem(huge_png(8, 8), 1_000_000) == ""


def test_pictures_are_checked_by_content_not_by_name() -> None:
    for kind in ("PNG", "JPEG", "WEBP"):
        assert image_problem(picture(kind=kind), 10_000) == ""
        assert image_problem(picture(kind=kind), 10_000, decode=True) == ""
    gif = picture(kind="GIF")
    assert image_problem(gif, 10_000) == "unreadable_image"
    assert image_problem(b"<html>404</html>", 10_000) == "unreadable_image"
    flipped = bytearray(picture())
    flipped[60] ^= 1
    assert image_problem(bytes(flipped), 10_000) == "unreadable_image"


def test_random_damage_never_raises_and_never_invents_bytes() -> None:
    draw = random.Random(0)
    members = [
        ("é.png", picture(1)),
        ("é.txt", b"x"),
        ("é.json", b'{"a": 1}'),
        ("j.jpg", picture(2, "JPEG")),
        ("j.txt", b"x"),
    ]
    clean = bytes(tar_bytes([*three_pairs(), *members]))
    for _ in range(300):
        content = bytearray(clean)
        for _ in range(draw.choice([1, 2, 20])):
            at = draw.randrange(len(content))
            content[at : at + draw.choice([1, 1, 700])] = draw.randbytes(draw.choice([1, 1, 0, 300]))
        contents = contents_of(content)
        for row in contents.rows:
            assert image_problem(bytes(content[row.offset : row.offset + row.bytes]), 1_000_000) == ""
        for dropped in contents.dropped:
            dropped.member.encode()
        assert contents.dropped or len(contents.rows) == 5
