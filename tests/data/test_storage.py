"""The door to bytes: whole or not at all, the same on a path, in memory and on a real S3 server, errors in one line."""

import errno
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NoReturn

import pytest
from s3fs import S3FileSystem

from data import storage
from data.errors import StorageError


@pytest.fixture(params=["local", "memory", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "local":
        yield str(tmp_path)
        return
    place = "memory://clipworks" if request.param == "memory" else f"s3://{request.getfixturevalue('seaweed').bucket}"
    uri = f"{place}/{uuid.uuid4().hex}"
    yield uri
    storage.remove(uri)


def one_line(error: pytest.ExceptionInfo[StorageError], *words: str) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 300
    assert all(word in text for word in words), text
    return text


# ------------------------------------------------------------------------------------------- the same in every place


def test_written_bytes_come_back_whole_and_in_ranges(root: str) -> None:
    uri = storage.join(root, "a", "x.bin")
    storage.write_bytes(uri, b"0123456789")
    assert storage.read_bytes(uri) == b"0123456789"
    assert storage.read_bytes(uri, 2, 5) == b"234"
    assert storage.read_bytes(uri, 8, 50) == b"89"
    assert storage.read_bytes(uri, 4, 4) == b""
    assert storage.read_bytes(uri, 50, 60) == b""
    assert storage.size_bytes(uri) == 10
    with storage.open_read(uri) as stream:
        assert stream.read() == b"0123456789"
    assert storage.sha256(uri) == "84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882"


def test_writing_again_replaces_and_is_seen_at_once(root: str) -> None:
    uri = storage.join(root, "note.json")
    assert not storage.exists(uri)
    storage.write_json(uri, {"b": 1, "a": "é"})
    assert storage.exists(uri)
    storage.write_json(uri, {"a": 2})
    assert storage.read_json(uri) == {"a": 2}


def test_lists_name_what_is_below_and_only_that(root: str) -> None:
    for name in ("top.txt", "sub/one.txt", "sub/deep/two.txt", ".hidden/three.txt"):
        storage.write_bytes(storage.join(root, *name.split("/")), name.encode())
    storage.write_bytes(f"{root}-beside/four.txt", b"a prefix that only looks like the folder")
    assert storage.list_files(root) == [("top.txt", 7)]
    assert storage.list_files(root, recursive=True) == [
        (".hidden/three.txt", 17), ("sub/deep/two.txt", 16), ("sub/one.txt", 11), ("top.txt", 7),
    ]  # fmt: skip
    assert storage.list_folders(root) == [".hidden", "sub"]
    assert storage.is_folder(storage.join(root, "sub"))
    assert not storage.is_folder(storage.join(root, "top.txt"))
    storage.remove(f"{root}-beside")


def test_nothing_there_lists_as_empty_and_removes_quietly(root: str) -> None:
    missing = storage.join(root, "missing")
    assert (
        storage.list_files(missing)
        == storage.list_files(missing, recursive=True)
        == storage.list_folders(missing)
        == []
    )
    assert not storage.is_folder(missing)
    storage.remove(missing)


def test_a_file_lists_as_no_files(root: str) -> None:
    storage.write_bytes(storage.join(root, "a.txt"), b"x")
    assert storage.list_files(storage.join(root, "a.txt")) == []
    assert storage.list_files(storage.join(root, "a.txt"), recursive=True) == []


def test_what_another_process_writes_after_a_listing_is_seen(root: str) -> None:
    storage.write_bytes(storage.join(root, "first"), b"1")
    assert storage.list_files(root) == [("first", 1)]
    fs, path = storage.filesystem(root)
    if root.startswith("s3://"):  # another client, with caches of its own, as another process would have
        fs = S3FileSystem(skip_instance_cache=True)
    fs.pipe_file(f"{path}/second", b"22")
    assert storage.exists(storage.join(root, "second"))
    assert storage.list_files(root) == [("first", 1), ("second", 2)]


def test_local_output_appears_when_the_block_ends(root: str) -> None:
    uri = storage.join(root, "sub", "big.bin")
    with storage.local_output(uri) as path:
        path.write_bytes(b"z" * 6_000_000)
        assert not storage.exists(uri)
    assert storage.size_bytes(uri) == 6_000_000
    assert storage.list_files(storage.join(root, "sub")) == [("big.bin", 6_000_000)]


def test_local_output_leaves_nothing_after_an_error(root: str) -> None:
    uri = storage.join(root, "big.bin")
    with pytest.raises(RuntimeError, match="half way"), storage.local_output(uri) as path:
        path.write_bytes(b"half")
        raise RuntimeError("half way")
    assert not storage.exists(uri)
    assert storage.list_files(root, recursive=True) == []


def test_local_output_keeps_the_old_file_after_an_error(root: str) -> None:
    uri = storage.join(root, "x")
    storage.write_bytes(uri, b"old")
    with pytest.raises(KeyError), storage.local_output(uri) as path:
        path.write_bytes(b"new")
        raise KeyError
    assert storage.read_bytes(uri) == b"old"


def test_local_copy_gives_files_and_folders(root: str) -> None:
    storage.write_bytes(storage.join(root, "model", "config.json"), b"{}")
    storage.write_bytes(storage.join(root, "model", "deep", "weights"), b"ww")
    with storage.local_copy(storage.join(root, "model")) as folder:
        assert (folder / "deep" / "weights").read_bytes() == b"ww"
    with storage.local_copy(storage.join(root, "model", "config.json")) as file:
        assert file.read_text() == "{}"


def test_remove_takes_a_folder_with_all_below(root: str) -> None:
    storage.write_bytes(storage.join(root, "gone", "deep", "x"), b"x")
    storage.write_bytes(storage.join(root, "stays"), b"x")
    storage.remove(storage.join(root, "gone"))
    assert storage.list_files(root, recursive=True) == [("stays", 1)]


def test_a_missing_file_is_one_line_with_its_place(root: str) -> None:
    uri = storage.join(root, "nowhere.json")
    for read in (storage.read_bytes, storage.read_json, storage.size_bytes, storage.sha256):
        with pytest.raises(StorageError) as error:
            read(uri)
        one_line(error, uri, "not found", "check")


def test_damaged_json_is_one_line(root: str) -> None:
    storage.write_bytes(storage.join(root, "torn.json"), b'{"a": ')
    with pytest.raises(StorageError) as error:
        storage.read_json(storage.join(root, "torn.json"))
    one_line(error, "torn.json", "damaged")


# ------------------------------------------------------------------------------------------------------------- local


@pytest.mark.parametrize("writes", ["write_bytes", "local_output"])
def test_a_reader_never_sees_a_part(tmp_path: Path, writes: str) -> None:
    uri, contents = str(tmp_path / "x"), [bytes([value]) * 400_000 for value in range(2)]
    storage.write_bytes(uri, contents[0])
    torn: list[int] = []
    ended = threading.Event()

    def read() -> None:
        while not ended.is_set():
            content = Path(uri).read_bytes()
            if content not in contents:
                torn.append(len(content))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(60):
        if writes == "write_bytes":
            storage.write_bytes(uri, contents[number % 2])
        else:
            with storage.local_output(uri) as path, path.open("wb") as stream:
                stream.write(contents[number % 2][:200_000])
                stream.flush()
                stream.write(contents[number % 2][200_000:])
    ended.set()
    reader.join()
    assert torn == []


def test_lines_of_several_writers_stay_whole(tmp_path: Path) -> None:
    uri = str(tmp_path / "log" / "x.jsonl")
    lines = [letter * 20_000 for letter in "abcd"]
    writers = [
        threading.Thread(target=lambda text=line: [storage.append_line(uri, text) for _ in range(25)]) for line in lines
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert sorted(Path(uri).read_text().splitlines()) == sorted(lines * 25)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "no space left; free some or choose another --root"),
        (errno.EDQUOT, "no space left"),
        (errno.EROFS, "read-only file system"),
        (errno.EACCES, "access denied; check permissions"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_what_the_disk_refuses_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    def refuse(_: int) -> NoReturn:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageError) as error:
        storage.write_bytes(str(tmp_path / "x"), b"content")
    one_line(error, str(tmp_path / "x"), words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_fills_while_the_caller_writes_is_one_line(tmp_path: Path) -> None:
    with (
        pytest.raises(StorageError) as error,
        storage.local_output(str(tmp_path / "x.tar")),
        Path("/dev/full").open("wb", buffering=0) as stream,
    ):
        stream.write(b"x")
    one_line(error, "x.tar", "no space left")
    assert list(tmp_path.iterdir()) == []


def test_a_library_that_reports_a_full_disk_in_words_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as error, storage.local_output(str(tmp_path / "w.safetensors")):
        raise RuntimeError("I/O error: No space left on device (os error 28)")
    one_line(error, "w.safetensors", "no space left")


def test_a_caller_s_own_errors_are_not_blamed_on_the_output(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="elsewhere"), storage.local_output(str(tmp_path / "x")):
        Path(tmp_path / "elsewhere.png").read_bytes()
    with pytest.raises(OSError, match="cannot identify image"), storage.local_output(str(tmp_path / "x")):
        raise OSError("cannot identify image file")  # what Pillow raises: no errno, nothing of the disk


def test_a_folder_below_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for write in (_write, _write_file, _append):
        with pytest.raises(StorageError) as error:
            write(str(tmp_path / "file" / "x"))
        one_line(error, "cannot write", "a file is where a folder must be")


def _write(uri: str) -> None:
    storage.write_bytes(uri, b"x")


def _write_file(uri: str) -> None:
    with storage.local_output(uri) as path:
        path.write_bytes(b"x")


def _append(uri: str) -> None:
    storage.append_line(uri, "x")


def test_a_folder_that_may_not_be_read_is_said_not_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "closed").mkdir()
    real = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(StorageError) as error:
        storage.list_files(str(tmp_path), recursive=True)
    one_line(error, "cannot list", "access denied")


def test_a_linked_folder_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.txt").write_text("a")
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / "linked").symlink_to(tmp_path / "real")
    assert storage.list_folders(str(tmp_path / "place")) == ["linked"]
    assert storage.list_files(str(tmp_path / "place" / "linked")) == [("a.txt", 1)]
    storage.remove(str(tmp_path / "place" / "linked"))
    assert (tmp_path / "real" / "a.txt").exists()


def test_temporary_names_are_known_and_nothing_else_is() -> None:
    assert storage.is_temporary("shards/.00000.tar.0a1b2c3d.tmp")
    assert not any(map(storage.is_temporary, ("x.tmp", ".x.tmp", ".hidden", "x.tar.0a1b2c3d.tmp", "shards/00000.tar")))


def test_urls_of_no_known_storage_are_one_line() -> None:
    with pytest.raises(StorageError) as error:
        storage.read_bytes("gopher7://host/x")
    one_line(error, "gopher7://host/x", "s3://")


def test_places_are_normalised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.normalise("runs") == storage.normalise(f"file://{tmp_path}/runs/") == str(tmp_path / "runs")
    assert storage.normalise("s3://bucket/prefix/") == "s3://bucket/prefix"
    assert storage.normalise(Path("~/x")) == str(Path.home() / "x")


# ---------------------------------------------------------------------------------------------------------------- S3

CALLS: dict[str, Callable[[str], object]] = {
    "exists": storage.exists,
    "list_files": storage.list_files,
    "list_files_recursive": lambda uri: storage.list_files(uri, recursive=True),
    "list_folders": storage.list_folders,
    "read": storage.read_bytes,
    "write": _write,
    "local_output": _write_file,
}


@pytest.mark.parametrize("call", CALLS)
def test_wrong_credentials_are_one_line_without_the_secret(
    seaweed: Any, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-wrong-secret")
    with pytest.raises(StorageError) as error:
        CALLS[call](f"s3://{seaweed.bucket}/some/x")
    text = one_line(error, f"s3://{seaweed.bucket}/some/x", "access denied", "credentials")
    assert "a-wrong-secret" not in text
    assert seaweed.secret not in text


def test_no_credentials_are_one_line(seaweed: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(StorageError) as error:
        storage.write_bytes(f"s3://{seaweed.bucket}/x", b"x")
    one_line(error, "NoCredentialsError", "AWS_")


def test_a_missing_bucket_is_one_line(seaweed: Any) -> None:
    with pytest.raises(StorageError) as error:
        storage.write_bytes("s3://no-such-bucket/x", b"x")
    one_line(error, "s3://no-such-bucket/x", "not found", "bucket")
    assert storage.list_folders("s3://no-such-bucket") == []


def test_an_endpoint_that_does_not_answer_is_one_line(seaweed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with pytest.raises(StorageError) as error:
        storage.exists(f"s3://{seaweed.bucket}/x")
    one_line(error, "EndpointConnectionError", "AWS_")


def test_an_upload_that_breaks_off_leaves_no_object(seaweed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = f"s3://{seaweed.bucket}/{uuid.uuid4().hex}.bin"
    monkeypatch.setattr(S3FileSystem, "_put_file", _broken_put)
    with pytest.raises(StorageError, match="cannot write"):
        _write_file(uri)
    assert not storage.exists(uri)


async def _broken_put(*_: Any, **__: Any) -> IO[bytes]:
    raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
