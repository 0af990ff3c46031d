"""A stage runs once: made, reused by identity, made again after a change, and invisible until it is whole."""

import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
from pydantic import Field

from data import storage
from data.artifacts import Output, find_fingerprint, open_artifact
from data.errors import ArtifactError, StorageError
from data.events import read_events
from data.measurement import measurement_uri, read_measurement
from data.place import Place
from data.spec import Operational, Spec, SplitRef, digest
from data.stage import Outcome, StageFunction, StageSpec, Work, run_stage

MADE: list[str] = []
FAIL: dict[str, BaseException] = {}


class Part(Spec):
    size: int = 1


class Numbers(StageSpec):
    """Writes a few numbers."""

    MAKES: ClassVar[str] = "split"
    kind: Literal["numbers"] = "numbers"
    count: int = 3
    parts: dict[str, Part] = Field(default_factory=dict)
    log_every: Annotated[int, Operational] = 1

    def build(self) -> StageFunction:
        return _numbers


class Total(StageSpec):
    """Adds up the numbers of its parent."""

    MAKES: ClassVar[str] = "evaluation"
    kind: Literal["total"] = "total"
    numbers: SplitRef
    scale: float = 1.0

    def build(self) -> StageFunction:
        return _total


class Sourced(Numbers):
    """Numbers that depend on something outside the recipe."""

    SOURCE: ClassVar[dict[str, Any]] = {}

    def source_identity(self) -> dict[str, Any]:
        MADE.append("looked")
        return dict(self.SOURCE)


def _numbers(spec: Numbers, work: Work) -> Outcome:
    MADE.append(work.name)
    for number in work.events.track(range(spec.count), spec.count, "numbers"):
        storage.write_bytes(work.out.at(f"{number}.txt"), str(number).encode())
        if number == 1 and "numbers" in FAIL:
            raise FAIL["numbers"]
    return Outcome({"numbers": spec.count}, {"largest": spec.count - 1}, {"0.txt": "known"})


def _total(spec: Total, work: Work) -> Outcome:
    MADE.append(work.name)
    names = [name for name, _ in storage.list_files(work.parents["numbers"].uri) if name.endswith(".txt")]
    total = spec.scale * sum(int(storage.read_bytes(work.parents["numbers"].at(name))) for name in names)
    storage.write_json(work.out.at("total.json"), total)
    return Outcome({}, {"total": total})


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    MADE.clear()
    FAIL.clear()
    yield
    FAIL.clear()


@pytest.fixture(params=["local", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "local":
        yield Place(root=str(tmp_path / "runs"))
        return
    at = "memory://runs" if request.param == "memory" else f"s3://{request.getfixturevalue('seaweed').bucket}"
    root = f"{at}/{uuid.uuid4().hex}"
    yield Place(root=root)
    storage.remove(root)


@pytest.fixture
def here(tmp_path: Path) -> Place:
    return Place(root=str(tmp_path / "runs"))


def events_of(place: Place, name: str, spec: StageSpec, parents: dict[str, str] | None = None) -> list[str]:
    uri = Output(place.root, name, spec.fingerprint(parents or {})).events_uri
    return [event["event"] for event in read_events(uri) if event["event"] != "progress"]


def test_a_stage_makes_its_artifact_and_says_so(place: Place) -> None:
    made = run_stage("numbers", Numbers(), {}, place)
    assert made.record.kind == "split"
    assert made.record.stage == "numbers"
    assert made.record.fingerprint == Numbers().fingerprint({})
    assert made.record.counts == {"numbers": 3}
    assert made.record.metrics == {"largest": 2}
    assert made.record.checksums["0.txt"] == "known"
    assert made.record.config == {"kind": "numbers", "count": 3, "parts": {}}
    assert open_artifact(made.uri).record == made.record
    assert events_of(place, "numbers", Numbers()) == ["started", "finished"]
    timing = storage.read_json(storage.join(place.root, ".events", f"{storage.name_of(made.uri)}.timing.json"))
    assert timing["seconds"] >= 0
    assert (timing["stage"], timing["kind"], timing["fingerprint"]) == ("numbers", "numbers", made.fingerprint)
    assert timing["config"] == digest(made.record.config)
    assert timing["is_whole"]
    assert timing["bytes_written"] == sum(size for _, size in storage.list_files(made.uri, recursive=True))
    assert "seconds" not in made.record.model_dump_json()  # a record holds no time


def test_a_measurement_says_pairs_start_up_and_what_only_the_stage_knows(here: Place) -> None:
    class Counted(Numbers):
        def workload(self, parents: Mapping[str, Mapping[str, int]]) -> int:
            return 7

        def build(self) -> StageFunction:
            def make(spec: Numbers, work: Work) -> Outcome:
                work.events.progress(0, 3, "numbers")
                return Outcome({"pairs": 3}, measured={"workers": 4, "gpus": 2, "device": "a GPU", "flops": 5.0})

            return make

    made = run_stage("numbers", Counted(), {}, here)
    took = read_measurement(measurement_uri(here.root, storage.name_of(made.uri)))
    assert took is not None
    assert (took.pairs, took.workers, took.gpus, took.device, took.flops) == (7, 4, 2, "a GPU", 5.0)
    assert took.start_seconds is not None
    assert 0 <= took.start_seconds <= took.seconds


def test_a_stage_that_went_on_where_another_process_stopped_is_not_measured_as_whole(here: Place) -> None:
    out = Output(here.root, "numbers", Numbers().fingerprint({}))
    with out.lock():
        storage.write_json(storage.join(out.state_uri, "done.json"), {})  # what a killed process leaves
    made = run_stage("numbers", Numbers(), {}, here)
    took = read_measurement(measurement_uri(here.root, storage.name_of(made.uri)))
    assert took is not None
    assert not took.is_whole


def test_the_same_stage_is_reused_under_any_name(place: Place) -> None:
    made = run_stage("numbers", Numbers(), {}, place)
    again = run_stage("renamed", Numbers(log_every=50), {}, place)
    assert again.uri == made.uri
    assert MADE == ["numbers"]
    assert events_of(place, "renamed", Numbers()) == ["reused"]


def test_a_changed_number_makes_only_what_depends_on_it(place: Place) -> None:
    first = run_stage("numbers", Numbers(), {}, place)
    total = run_stage("total", Total(numbers="numbers"), {"numbers": first.uri}, place)
    assert total.record.metrics == {"total": 3.0}
    assert total.record.parents == {"numbers": first.fingerprint}
    scaled = run_stage("total", Total(numbers="numbers", scale=2), {"numbers": first.uri}, place)
    assert scaled.record.metrics == {"total": 6.0}
    assert MADE == ["numbers", "total", "total"]
    longer = run_stage("numbers", Numbers(count=4), {}, place)
    after = run_stage("total", Total(numbers="numbers"), {"numbers": longer.uri}, place)
    assert after.record.metrics == {"total": 6.0}
    assert after.uri != total.uri
    assert [artifact.uri for artifact in after.ancestors()] == [longer.uri]


@pytest.mark.parametrize("error", [RuntimeError("half way"), KeyboardInterrupt(), StorageError("gone")])
def test_a_failed_stage_shows_nothing_and_the_next_run_completes(place: Place, error: BaseException) -> None:
    FAIL["numbers"] = error
    with pytest.raises(type(error)):
        run_stage("numbers", Numbers(), {}, place)
    assert find_fingerprint(place.root, Numbers().fingerprint({})) is None
    assert events_of(place, "numbers", Numbers()) == ["started", "failed"]
    FAIL.clear()
    made = run_stage("numbers", Numbers(), {}, place)
    assert set(made.record.checksums) == {"0.txt", "1.txt", "2.txt"}
    assert events_of(place, "numbers", Numbers()) == ["started", "failed", "started", "finished"]


def test_a_lost_event_does_not_hide_what_went_wrong(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(uri: str, _: str) -> None:
        raise StorageError(f"{uri}: cannot write: no space left")

    class Failing(Numbers):
        def build(self) -> StageFunction:
            monkeypatch.setattr(storage, "append_line", full)
            raise ZeroDivisionError("the real reason")

    with pytest.raises(ZeroDivisionError, match="the real reason"):
        run_stage("numbers", Failing(), {}, here)


def test_what_another_run_made_meanwhile_is_taken(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from data import stage

    real, calls = stage.find_fingerprint, []

    def late(root: str, print_: str) -> Any:
        """The first look finds nothing; before the lock is held, another run completes the artifact."""
        calls.append(print_)
        if len(calls) == 1:
            run_stage("numbers", Numbers(), {}, here)
            return None
        return real(root, print_)

    monkeypatch.setattr(stage, "find_fingerprint", late)
    made = run_stage("numbers", Numbers(), {}, here)
    assert MADE == ["numbers"]
    assert open_artifact(made.uri).record == made.record
    assert storage.list_folders(storage.join(here.root, ".partial")) == []


def test_the_order_of_named_parts_is_identity_but_one_part_has_none() -> None:
    parts = {"a": Part(size=1), "b": Part(size=2)}
    turned = dict(reversed(parts.items()))
    assert Numbers(parts=parts).fingerprint({}) != Numbers(parts=turned).fingerprint({})
    assert Numbers(parts=parts).resolved()["order"] == {"parts": ["a", "b"]}
    assert "order" not in Numbers(parts={"a": Part()}).resolved()


def test_the_source_counts_and_is_looked_at_once(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run_stage("numbers", Sourced(), {}, here)
    assert MADE == ["looked", "numbers"]
    monkeypatch.setattr(Sourced, "SOURCE", {"files": "digest"})
    second = run_stage("numbers", Sourced(), {}, here)
    assert second.fingerprint != first.fingerprint
    assert second.record.config["source"] == {"files": "digest"}


@pytest.mark.parametrize("parents", [{}, {"numbers": "x", "other": "y"}, {"number": "x"}])
def test_missing_or_unknown_parents_are_one_line(here: Place, parents: dict[str, str]) -> None:
    with pytest.raises(ArtifactError, match="parents needed: numbers"):
        run_stage("total", Total(numbers="numbers"), parents, here)


def test_a_parent_of_another_kind_is_refused(here: Place) -> None:
    first = run_stage("numbers", Numbers(), {}, here)
    total = run_stage("total", Total(numbers="numbers"), {"numbers": first.uri}, here)
    with pytest.raises(ArtifactError, match="is a evaluation, where a split is needed"):
        run_stage("total", Total(numbers="total"), {"numbers": total.uri}, here)


def test_parents_below_a_role_come_by_label_in_order(here: Place) -> None:
    first = run_stage("numbers", Numbers(), {}, here)
    second = run_stage("numbers", Numbers(count=1), {}, here)
    parents = {"layers.1": first, "layers.0": second, "other": first}
    work = Work("x", parents, Output(here.root, "x", "0" * 64), here, events=None)  # type: ignore[arg-type]
    assert work.parents_below("layers") == {"1": first, "0": second}


_KILLED = """
import os, signal, sys
from typing import ClassVar, Literal
from data import storage
from data.place import Place
from data.stage import StageSpec, run_stage

class Slow(StageSpec):
    MAKES: ClassVar[str] = "split"
    kind: Literal["slow"] = "slow"
    def build(self):
        return self.make
    @staticmethod
    def make(spec, work):
        storage.write_bytes(work.out.at("0.txt"), b"0")
        with storage.local_output(work.out.at("1.txt")) as path:
            path.write_bytes(b"torn")
            os.kill(os.getpid(), signal.SIGKILL)

run_stage("slow", Slow(), {}, Place(root=sys.argv[1]))
"""


class Slow(StageSpec):
    """The stage that is killed above, of the same identity, now surviving."""

    MAKES: ClassVar[str] = "split"
    kind: Literal["slow"] = "slow"

    def build(self) -> StageFunction:
        return _slow


def _slow(_: Slow, work: Work) -> Outcome:
    assert storage.read_bytes(work.out.at("0.txt")) == b"0"  # what the killed process completed is still there
    storage.write_bytes(work.out.at("1.txt"), b"1")
    return Outcome({})


def test_a_killed_stage_shows_nothing_and_the_next_run_completes(here: Place) -> None:
    killed = subprocess.run([sys.executable, "-c", _KILLED, here.root], check=False, capture_output=True)
    assert killed.returncode == -9, killed.stderr.decode()
    assert storage.list_folders(here.root) == [".events", ".partial"]
    made = run_stage("slow", Slow(), {}, here)
    assert set(made.record.checksums) == {"0.txt", "1.txt"}
    assert [name for name, _ in storage.list_files(made.uri)] == ["0.txt", "1.txt", "record.json"]
