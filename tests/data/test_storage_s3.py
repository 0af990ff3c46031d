"""S3 when it does not go well: throttled, broken off, killed and started again; large files; writes on a condition."""

import hashlib
import os
import random
import resource
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from data import s3, storage
from data.errors import StorageError


@pytest.fixture
def place() -> str:
    return f"s3://pairs/{uuid.uuid4().hex}"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "_FIRST_WAIT_SECONDS", 0.02)


def methods(road: Any) -> list[str]:
    return [method for method, _ in road.requests]


# ------------------------------------------------------------------------------------------------------- large files


def test_a_large_file_travels_in_parts_within_bounded_memory(bad_road: Any, place: str, tmp_path: Path) -> None:
    part, uri = s3.PART_BYTES, storage.join(place, "large.bin")
    block, state = random.Random(0).randbytes(1 << 20), hashlib.sha256()
    blocks = 9 * part // len(block) + 1  # nine parts and a bit
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with storage.local_output(uri) as path, path.open("wb") as stream:
        for _ in range(blocks):
            stream.write(block)
            state.update(block)
    assert sum(path.count("partNumber=") for _, path in bad_road.requests) == 10
    assert storage.size_bytes(uri) == blocks * len(block)
    with storage.local_copy(uri) as copy, copy.open("rb") as stream:
        assert hashlib.file_digest(stream, "sha256").hexdigest() == state.hexdigest()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    # the proxy, in this process, holds each part of the four under way once or twice more
    assert grown < 3 * 4 * part + (32 << 20), f"{grown / 2**20:.0f} MiB for a file of {blocks} MiB"
    assert storage.read_bytes(uri, 3 * part - 5, 3 * part + 5) == block[-5:] + block[:5]


def test_parts_that_fail_are_sent_again(bad_road: Any, place: str) -> None:
    bad_road.fault = lambda method, path, number: "503" if "partNumber" in path and number % 2 else ""
    content = random.Random(1).randbytes(3 * s3.PART_BYTES)
    with storage.local_output(storage.join(place, "x.bin")) as path:
        path.write_bytes(content)
    assert "503" in bad_road.faults
    with storage.local_copy(storage.join(place, "x.bin")) as copy:
        assert copy.read_bytes() == content


def test_a_lost_answer_to_the_end_of_an_upload_is_no_loss(bad_road: Any, place: str) -> None:
    lost: list[str] = []

    def fault(method: str, path: str, number: int) -> str:
        is_end = method == "POST" and "uploadId" in path and not lost
        lost.extend([path] if is_end else [])
        return "lost" if is_end else ""

    bad_road.fault = fault
    content = random.Random(2).randbytes(2 * s3.PART_BYTES + 1)
    with storage.local_output(storage.join(place, "x.bin")) as path:
        path.write_bytes(content)
    assert lost
    assert storage.sha256(storage.join(place, "x.bin")) == hashlib.sha256(content).hexdigest()


def test_uploads_that_a_killed_process_began_are_ended(seaweed: Any, place: str) -> None:
    fs, path = storage.filesystem(place)
    for key in (f"{path}/shards/0.tar", f"{path}-beside/1.tar"):
        fs.call_s3("create_multipart_upload", Bucket="pairs", Key=key.removeprefix("pairs/"))
    storage.end_uploads(place)
    assert list(s3.begun_uploads(fs, path)) == []
    assert len(list(s3.begun_uploads(fs, f"{path}-beside"))) == 1


# ---------------------------------------------------------------------------------------------------------- bad roads


@pytest.mark.parametrize("fault", ["503", "500", "cut", "lost", "slow"])
def test_everything_comes_through_a_bad_road(bad_road: Any, place: str, fault: str) -> None:
    luck = random.Random(fault)
    bad_road.fault = lambda method, path, number: fault if luck.random() < 0.3 else ""
    contents = {f"{number}.bin": luck.randbytes(3_000 * number) for number in range(12)}
    for name, content in contents.items():
        storage.write_bytes(storage.join(place, name), content)
    assert storage.list_files(place) == sorted((name, len(content)) for name, content in contents.items())
    for name, content in contents.items():
        assert storage.read_bytes(storage.join(place, name)) == content
        assert storage.read_bytes(storage.join(place, name), 10, 2_000) == content[10:2_000]
        with storage.open_read(storage.join(place, name)) as stream:
            assert stream.read() == content
    with storage.local_copy(place) as folder:
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == contents
    storage.remove(place)
    assert storage.list_files(place) == []
    assert bad_road.faults


def test_a_server_that_stays_busy_is_one_line_that_says_for_how_long(
    bad_road: Any, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(s3.PATIENCE_VARIABLE, "0.3")
    bad_road.fault = lambda method, path, number: "503"
    with pytest.raises(StorageError) as error:
        storage.write_bytes(storage.join(place, "x"), b"x")
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"{place}/x: cannot write: SlowDown after ")
    assert "check that the server is up" in str(error.value)
    assert len(bad_road.requests) > 1


def test_the_tries_are_bounded_by_the_setting_that_aws_tools_know(
    bad_road: Any, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
    bad_road.fault = lambda method, path, number: "500"
    with pytest.raises(StorageError, match="HTTP 500 after 3 tries"):
        storage.exists(place)
    assert len(bad_road.requests) == 3


def test_what_is_refused_is_not_asked_again(bad_road: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match="not found"):
        storage.write_bytes("s3://no-such-bucket/x", b"x")
    assert methods(bad_road) == ["PUT"]


def test_a_small_read_or_write_is_one_request(bad_road: Any, place: str) -> None:
    storage.write_bytes(storage.join(place, "x"), b"123")
    assert storage.read_if_there(storage.join(place, "x")) == b"123"
    assert storage.read_if_there(storage.join(place, "y")) is None
    assert storage.read_bytes(storage.join(place, "x"), 1, 2) == b"2"
    storage.remove(place)
    assert methods(bad_road) == ["PUT", "GET", "GET", "GET", "GET", "DELETE"]


# --------------------------------------------------------------------------------------------------- on a condition


@pytest.mark.parametrize("where", ["local", "memory", "s3"])
def test_only_one_of_many_creates_a_file(
    where: str, request: pytest.FixtureRequest, tmp_path: Path, place: str
) -> None:
    if where == "s3":
        request.getfixturevalue("seaweed")
    uri = storage.join({"local": str(tmp_path), "memory": f"memory://{uuid.uuid4().hex}", "s3": place}[where], "x")
    told: list[tuple[bytes, bool]] = []
    start = threading.Barrier(6)

    def create(content: bytes) -> None:
        start.wait()
        told.append((content, storage.create_bytes(uri, content)))

    writers = [threading.Thread(target=create, args=(b"%d" % number,)) for number in range(6)]
    if where == "memory":  # a dictionary in this process: one after the other is all it is for
        start = threading.Barrier(1)
        for number in range(6):
            create(b"%d" % number)
    else:
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
    winners = [content for content, is_ours in told if is_ours]
    assert winners == [storage.read_bytes(uri)]


def test_a_lost_answer_to_a_create_is_still_ours(bad_road: Any, place: str) -> None:
    bad_road.fault = lambda method, path, number: "lost" if method == "PUT" and "lost" not in bad_road.faults else ""
    assert storage.create_bytes(storage.join(place, "x"), b"mine")
    assert bad_road.faults == ["lost"]
    assert not storage.create_bytes(storage.join(place, "x"), b"theirs")
    assert storage.read_bytes(storage.join(place, "x")) == b"mine"


@pytest.mark.parametrize("how", ["refuses", "ignores"])
def test_a_server_that_knows_no_conditions_is_asked_first(
    bad_road: Any, place: str, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how == "refuses":  # HTTP 501
        bad_road.fault = lambda method, path, number: "501" if method == "PUT" and not bad_road.faults else ""
    else:  # takes the header and does not obey it
        pipe = s3.PatientS3.pipe_file
        monkeypatch.setattr(s3.PatientS3, "pipe_file", lambda fs, path, content, mode="": pipe(fs, path, content))
    assert storage.create_bytes(storage.join(place, "x"), b"first")
    assert not storage.create_bytes(storage.join(place, "x"), b"second")
    assert storage.read_bytes(storage.join(place, "x")) == b"first"
    assert bad_road.faults == (["501"] if how == "refuses" else [])


# ------------------------------------------------------------------------------------------------------------- killed


@pytest.mark.timeout(900)  # a machine that builds an image beside it has a busy disk
def test_writers_outlive_a_server_that_is_killed_and_started_again(
    seaweed_mortal: Any, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(s3.PATIENCE_VARIABLE, "100")
    monkeypatch.setattr(s3, "_LONGEST_WAIT_SECONDS", 1.0)
    ended, written, failed = threading.Event(), dict[str, str](), list[Exception]()

    def write(writer: int) -> None:
        luck, number = random.Random(writer), 0
        try:
            while not ended.is_set():
                name, content = f"{writer}-{number}", luck.randbytes(luck.choice([100, 3 << 20, 2 * s3.PART_BYTES + 9]))
                with storage.local_output(storage.join(place, name)) as path:
                    path.write_bytes(content)
                written[name] = hashlib.sha256(content).hexdigest()
                number += 1
        except Exception as error:  # noqa: BLE001 - shown below
            failed.append(error)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(2)]
    for writer in writers:
        writer.start()
    for _ in range(2):
        wait_for_more(written)
        seaweed_mortal.kill()
        time.sleep(0.5)
        seaweed_mortal.start()
    wait_for_more(written)
    ended.set()
    for writer in writers:
        writer.join()
    assert not failed, failed
    there = {name: storage.sha256(storage.join(place, name)) for name, _ in storage.list_files(place)}
    assert there == written


def wait_for_more(written: dict[str, str]) -> None:
    before = len(written)
    for _ in range(2400):
        if len(written) >= before + 4:
            return
        time.sleep(0.1)
    pytest.fail("nothing was written for four minutes")


def test_a_server_that_stays_away_is_one_line_and_what_follows_does_not_wait_as_long(
    seaweed_mortal: Any, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = s3.FIRST_PATIENCE_SECONDS
    monkeypatch.setattr(s3, "FIRST_PATIENCE_SECONDS", 0.0)
    monkeypatch.setenv(s3.PATIENCE_VARIABLE, "0.5")
    storage.write_bytes(storage.join(place, "x"), b"x")
    seaweed_mortal.kill()
    tries = []
    for _ in range(2):
        with pytest.raises(StorageError) as error:
            storage.write_bytes(storage.join(place, "x"), b"y")
        assert "\n" not in str(error.value)
        tries.append(int(str(error.value).partition(" after ")[2].split()[0]))
    assert tries[0] > 1
    assert tries[1] == 1
    seaweed_mortal.start()
    seaweed_mortal.wait_until_ready()
    monkeypatch.setattr(s3, "FIRST_PATIENCE_SECONDS", usual)
    monkeypatch.setenv(s3.PATIENCE_VARIABLE, "60")
    assert storage.read_bytes(storage.join(place, "x")) == b"x"


# ------------------------------------------------------------------------------------------------------------ secrets


def test_no_secret_of_the_environment_is_in_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, f"value-of-{name.lower()}")
    told = "token value-of-aws_session_token of value-of-aws_access_key_id is malformed"
    for error in (OSError(22, told), s3.NoAnswerError(told)):
        with pytest.raises(StorageError) as refused, storage.explained("s3://b/x", "read"):
            raise error
        assert "value-of" not in str(refused.value)
        assert os.environ["AWS_SESSION_TOKEN"] not in str(refused.value)
