"""Artifacts: the record comes last, what lacks one cannot be opened or found, and a name is not an identity."""

import os
import re
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from data import storage
from data.artifacts import (
    RECORD_NAME,
    Artifact,
    Output,
    Record,
    find_fingerprint,
    fingerprint,
    open_artifact,
    require_fingerprint,
)
from data.errors import ArtifactError, StorageError


@pytest.fixture(params=["local", "memory", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "local":
        yield str(tmp_path)
        return
    place = "memory://runs" if request.param == "memory" else f"s3://{request.getfixturevalue('seaweed').bucket}"
    uri = f"{place}/{uuid.uuid4().hex}"
    yield uri
    storage.remove(uri)


def record_of(print_: str, kind: str = "shard_set", **fields: Any) -> Record:
    return Record(kind=kind, stage="ingest", revision=1, fingerprint=print_, config={"n": 1}, **fields)


def make(root: str, name: str, seed: str, kind: str = "shard_set", **fields: Any) -> Artifact:
    print_ = fingerprint("ingest", 1, {"seed": seed}, {})
    out = Output(root, name, print_)
    with out.lock():
        storage.write_bytes(out.at("deep", "x.bin"), b"12345")
        storage.write_bytes(out.at("top.txt"), b"top")
        return out.commit(record_of(print_, kind, **fields))


# --------------------------------------------------------------------------------------------------------- identity


def test_fingerprint_depends_on_each_of_its_parts_and_on_no_order() -> None:
    base = fingerprint("train", 1, {"a": 1, "b": 2}, {"init": "x", "pairs": "y"})
    assert base == fingerprint("train", 1, {"b": 2, "a": 1}, {"pairs": "y", "init": "x"})
    others = [
        fingerprint("embed", 1, {"a": 1, "b": 2}, {"init": "x", "pairs": "y"}),
        fingerprint("train", 2, {"a": 1, "b": 2}, {"init": "x", "pairs": "y"}),
        fingerprint("train", 1, {"a": 1, "b": 3}, {"init": "x", "pairs": "y"}),
        fingerprint("train", 1, {"a": 1, "b": 2}, {"init": "y", "pairs": "x"}),
        fingerprint("train", 1, {"a": 1, "b": 2}, {"init": "x"}),
    ]
    assert len({base, *others}) == 6
    assert re.fullmatch("[0-9a-f]{64}", base)


def test_a_record_holds_no_path_host_or_time(tmp_path: Path) -> None:
    artifact = make(str(tmp_path), "ingest", "a")
    text = Path(artifact.uri, RECORD_NAME).read_text()
    assert str(tmp_path) not in text
    assert os.uname().nodename not in text
    assert make(str(tmp_path / "other"), "renamed", "a").record == artifact.record


# ------------------------------------------------------------------------------------------------ made, opened, found


def test_a_committed_artifact_opens_with_its_record_and_checksums(root: str) -> None:
    made = make(root, "ingest", "a", counts={"pairs": 3}, metrics={"rate": 0.5})
    assert storage.name_of(made.uri) == f"ingest-{made.fingerprint[:12]}"
    opened = open_artifact(made.uri, "shard_set")
    assert opened.record == made.record
    assert opened.record.counts == {"pairs": 3}
    assert opened.record.checksums == {
        "deep/x.bin": "5994471abb01112afcc18159f6cc74b4f511b99806da59b3caf5a9c173cacfc5",
        "top.txt": "28720365c5e7476a011e4f43ac003ee5f16247a263b9d623aa85ed311d73bf39",
    }
    assert opened.record.packages["numpy"]
    assert storage.read_bytes(opened.at("deep", "x.bin")) == b"12345"
    assert opened.root == storage.normalise(root)


def test_checksums_that_are_known_are_not_computed_again(root: str) -> None:
    made = make(root, "ingest", "a", checksums={"deep/x.bin": "given"})
    assert made.record.checksums["deep/x.bin"] == "given"


def test_it_is_found_by_fingerprint_whatever_its_stage_was_called(root: str) -> None:
    made = make(root, "another-name", "a")
    make(root, "ingest", "b")
    found = find_fingerprint(root, made.fingerprint)
    assert found is not None
    assert found.uri == made.uri
    assert find_fingerprint(root, "0" * 64) is None
    assert find_fingerprint(storage.join(root, "missing"), made.fingerprint) is None


def test_equal_short_fingerprints_are_told_apart_by_the_whole(root: str) -> None:
    short = "a" * 12
    for name, rest in (("one", "1"), ("two", "2")):
        print_ = short + rest * 52
        out = Output(root, name, print_)
        with out.lock():
            storage.write_bytes(out.at("x"), name.encode())
            out.commit(record_of(print_))
    found = find_fingerprint(root, short + "2" * 52)
    assert found is not None
    assert storage.read_bytes(found.at("x")) == b"two"


def test_parents_and_ancestors_are_reached_by_fingerprint(root: str) -> None:
    pairs = make(root, "ingest", "pairs")
    split = make(root, "split", "split", "split", parents={"pairs": pairs.fingerprint})
    selection = make(
        root, "curate", "sel", "selection", parents={"pairs": pairs.fingerprint, "split": split.fingerprint}
    )
    assert selection.parent("split").uri == split.uri
    assert [artifact.fingerprint for artifact in selection.ancestors()] == [pairs.fingerprint, split.fingerprint]
    assert list(pairs.ancestors()) == []
    storage.remove(pairs.uri)
    with pytest.raises(ArtifactError, match=f"no artifact with fingerprint {pairs.fingerprint[:12]}; run the recipe"):
        require_fingerprint(root, pairs.fingerprint)


# ------------------------------------------------------------------------------------------------------- incomplete


def test_what_has_no_record_is_neither_opened_nor_found(root: str) -> None:
    print_ = fingerprint("ingest", 1, {}, {})
    out = Output(root, "ingest", print_)
    with out.lock():
        storage.write_bytes(out.at("x"), b"half")
    for uri in (out.uri, out.final_uri):
        with pytest.raises(ArtifactError, match=r"no record\.json"):
            open_artifact(uri)
    assert find_fingerprint(root, print_) is None


def test_a_crash_while_the_record_is_written_leaves_nothing_visible(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash_at_the_record(write: Callable[[str, bytes], Any]) -> Callable[[str, bytes], Any]:
        def crash(uri: str, content: bytes) -> Any:
            if uri.endswith(RECORD_NAME):
                raise KeyboardInterrupt
            return write(uri, content)

        return crash

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        for name in ("write_bytes", "create_bytes"):
            patch.setattr(storage, name, crash_at_the_record(getattr(storage, name)))
        make(root, "ingest", "a")
    print_ = fingerprint("ingest", 1, {"seed": "a"}, {})
    assert find_fingerprint(root, print_) is None
    assert make(root, "ingest", "a").fingerprint == print_


def test_partial_work_is_found_again_and_state_is_removed_at_the_end(root: str) -> None:
    print_ = fingerprint("ingest", 1, {}, {})
    first = Output(root, "ingest", print_)
    with first.lock():
        storage.write_bytes(first.at("shard-0"), b"0")
        storage.write_bytes(storage.join(first.state_uri, "position"), b"1")
    again = Output(root, "ingest", print_)
    with again.lock():
        assert storage.read_bytes(again.at("shard-0")) == b"0"
        assert storage.read_bytes(storage.join(again.state_uri, "position")) == b"1"
        artifact = again.commit(record_of(print_))
    assert list(artifact.record.checksums) == ["shard-0"]
    assert storage.list_files(again.state_uri) == []


def test_what_a_killed_writer_left_is_no_part_of_the_artifact(tmp_path: Path) -> None:
    print_ = fingerprint("ingest", 1, {}, {})
    out = Output(str(tmp_path), "ingest", print_)
    with out.lock():
        storage.write_bytes(out.at("shards", "0.tar"), b"0")
        Path(out.at("shards", ".1.tar.0a1b2c3d.tmp")).write_bytes(b"torn")
        artifact = out.commit(record_of(print_))
    assert list(artifact.record.checksums) == ["shards/0.tar"]
    assert storage.list_files(artifact.uri, recursive=True) == [
        (RECORD_NAME, Path(artifact.uri, RECORD_NAME).stat().st_size),
        ("shards/0.tar", 1),
    ]


def test_an_incomplete_folder_in_the_way_is_replaced(tmp_path: Path) -> None:
    print_ = fingerprint("ingest", 1, {"seed": "a"}, {})
    final = Path(Output(str(tmp_path), "ingest", print_).final_uri)
    final.mkdir()
    (final / "left over").write_text("x")
    assert set(make(str(tmp_path), "ingest", "a").record.checksums) == {"deep/x.bin", "top.txt"}
    assert not (final / "left over").exists()


def test_on_a_path_nothing_shows_before_the_commit(tmp_path: Path) -> None:
    out = Output(str(tmp_path), "ingest", "f" * 64)
    with out.lock():
        storage.write_bytes(out.at("x"), b"x")
        assert storage.list_folders(str(tmp_path)) == [".partial"]
        out.commit(record_of("f" * 64))
    assert storage.list_folders(str(tmp_path)) == [".partial", "ingest-ffffffffffff"]
    assert storage.list_folders(str(tmp_path / ".partial")) == []


# ----------------------------------------------------------------------------------------------------------- wrong


def test_another_kind_is_refused(root: str) -> None:
    made = make(root, "ingest", "a")
    with pytest.raises(ArtifactError, match="is a shard_set, where a checkpoint is needed"):
        open_artifact(made.uri, "checkpoint")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"kind": 3}', b"\xff\xfe", b'{"unknown": 1}'])
def test_a_damaged_record_is_one_line_with_the_fix(root: str, content: bytes) -> None:
    made = make(root, "ingest", "a")
    storage.write_bytes(made.at(RECORD_NAME), content)
    with pytest.raises(ArtifactError, match="not a readable record; remove the directory") as error:
        open_artifact(made.uri)
    assert "\n" not in str(error.value)


def test_a_record_of_another_schema_is_refused(root: str) -> None:
    made = make(root, "ingest", "a")
    storage.write_json(made.at(RECORD_NAME), {**made.record.model_dump(mode="json"), "schema_version": 99})
    with pytest.raises(ArtifactError, match="schema 99 where this clipworks reads 1"):
        open_artifact(made.uri)


def test_numbers_that_are_not_finite_survive_the_record(root: str) -> None:
    made = make(root, "ingest", "a", metrics={"loss": float("nan"), "worst": float("inf")})
    metrics = open_artifact(made.uri).record.metrics
    assert str(metrics["loss"]).lower() == "nan"
    assert str(metrics["worst"]).lower() in ("inf", "infinity")


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot write"), Output(str(tmp_path / "file"), "x", "0" * 64).lock():
        pass


# ------------------------------------------------------------------------------------------------------------ locks


_HOLD = """
import signal, sys
from data.artifacts import Output
with Output(sys.argv[1], "ingest", "0" * 64).lock():
    print("locked", flush=True)
    signal.pause()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", _HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_a_second_process_is_told_and_a_killed_one_lets_go(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    out = Output(str(tmp_path), "ingest", "0" * 64)
    with pytest.raises(ArtifactError, match="another run is making this artifact; wait for it or end it"), out.lock():
        pytest.fail("two processes hold one lock")
    with Output(str(tmp_path), "ingest", "1" * 64).lock():
        pass  # another artifact of the same stage is free
    holder.kill()
    holder.wait(10)
    with out.lock():
        storage.write_bytes(out.at("x"), b"x")


def test_state_that_outlived_its_artifact_is_not_taken_for_a_restart(tmp_path: Path) -> None:
    out = Output(str(tmp_path), "x", "0" * 64)
    with out.lock():
        storage.write_json(storage.join(out.state_uri, "shard.json"), {})
    with out.lock():
        assert storage.exists(out.state_uri)  # a restart: the work began, and is still there
    storage.remove(out.uri)
    with out.lock():
        assert not storage.exists(out.state_uri)
