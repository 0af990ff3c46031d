"""What curation keeps depends on pairs alone: not on workers, their deaths, how pairs are sharded, or shards' order."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from data import storage
from data.artifacts import Artifact, Output
from data.errors import ShardError
from data.events import Events
from data.place import Place
from data.selection import read_entries, read_selection
from data.shardwise import Summary, each_shard
from data.stage import Work

_PAIRS, _SHARDS, _WORKERS = 160, 6, 2


@pytest.fixture(scope="module")
def pool(world: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("workers")
    world.write_tars(folder / "pool", world.sharded(world.web_pairs(_PAIRS), _SHARDS))
    world.write_entries(folder)
    return folder


def stages_of(world: ModuleType, folder: Path) -> dict[str, object]:
    stages: dict[str, object] = world.specs(str(folder / "pool"), str(folder / "entries.txt"))
    return stages


@pytest.fixture(scope="module")
def alone(world: ModuleType, pool: Path) -> dict[str, Artifact]:
    """The chain in this process."""
    made: dict[str, Artifact] = world.run(stages_of(world, pool), pool / "alone")
    return made


def kept(made: dict[str, Artifact]) -> list[str]:
    return [row["uid"] for row in read_selection(made["selection"]).to_pylist() if row["kept"]]


def test_the_chain_drops_pairs_at_every_step(alone: dict[str, Artifact]) -> None:
    counts = alone["selection"].record.counts  # else equal selections would say little
    steps = ("protected", "duplicate", "caption_length", "meta_flag", "unmatched", "drawn_out")
    assert [step for step in steps if not counts[f"dropped_{step}"]] == []
    assert counts["kept"] > 20


@pytest.mark.parametrize(("shards", "seed"), [(1, 1), (4, 2), (11, 3)])
def test_another_sharding_in_another_order_decides_every_pair_alike(
    world: ModuleType, alone: dict[str, Artifact], tmp_path: Path, shards: int, seed: int
) -> None:
    world.write_tars(tmp_path / "pool", world.sharded(world.web_pairs(_PAIRS), shards, seed))
    world.write_entries(tmp_path)
    made = world.run(stages_of(world, tmp_path), tmp_path / "root")
    assert made["pairs"].fingerprint != alone["pairs"].fingerprint
    assert read_selection(made["selection"]).equals(read_selection(alone["selection"]))
    assert read_entries(made["selection"]).equals(read_entries(alone["selection"]))
    assert made["selection"].record.counts == alone["selection"].record.counts
    for name in ("groups", "protected"):
        ours, theirs = (storage.read_bytes(each["duplicates"].at(f"{name}.parquet")) for each in (made, alone))
        assert ours == theirs


def test_another_seed_draws_other_pairs(
    world: ModuleType, pool: Path, alone: dict[str, Artifact], tmp_path: Path
) -> None:
    stages = stages_of(world, pool)
    selection = stages["selection"].model_copy(update={"seed": 1})  # type: ignore[attr-defined]
    made = world.run({"selection": selection}, tmp_path, made=alone)
    assert kept(made) != kept(alone)


def test_object_storage_holds_the_files_of_a_folder(
    world: ModuleType, pool: Path, alone: dict[str, Artifact], seaweed: Any
) -> None:
    made = world.run(stages_of(world, pool), f"s3://{seaweed.bucket}/curation")
    assert {name: each.record for name, each in made.items()} == {name: each.record for name, each in alone.items()}
    assert kept(made) == kept(alone)


# ------------------------------------------------------------------------------------------------------------ on Ray


@pytest.mark.ray
@pytest.mark.usefixtures("session_ray")
def test_rays_workers_write_the_bytes_of_one_process(world: ModuleType, pool: Path, alone: dict[str, Artifact]) -> None:
    made = world.run(stages_of(world, pool), pool / "workers", _WORKERS)
    assert kept(made) == kept(alone)
    assert world.contents(pool / "workers") == world.contents(pool / "alone")


@pytest.mark.ray
@pytest.mark.usefixtures("session_ray")
def test_a_worker_that_dies_changes_no_byte(
    world: ModuleType, pool: Path, alone: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = pool / "died"
    monkeypatch.setattr("data.curation.inspection.inspect_shard", dying(marker, number=2))
    stages = {name: spec for name, spec in stages_of(world, pool).items() if name in ("pairs", "split", "inspection")}
    made = world.run(stages, pool / "dying", _WORKERS)
    assert marker.exists()
    expected = {
        name: content
        for name, content in world.contents(pool / "alone").items()
        if name.split("-")[0] in ("pairs", "split", "inspection")
    }
    assert world.contents(pool / "dying") == expected
    assert made["inspection"].record == alone["inspection"].record


def dying(marker: Path, number: int) -> Callable[..., Summary]:
    """`inspect_shard`, which after it has written a shard takes its process with it, once."""

    def inspect_and_die(pairs: object, spec: object, out_uri: str, at: int) -> Summary:
        import os
        import signal

        from data.curation.inspection import inspect_shard  # the real one, in the worker's process

        summary = inspect_shard(pairs, spec, out_uri, at)  # type: ignore[arg-type]
        if at == number and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return summary

    return inspect_and_die


@pytest.mark.ray
@pytest.mark.usefixtures("session_ray")
def test_an_error_of_the_user_arrives_as_it_was_raised_and_the_rest_goes_on_later(tmp_path: Path) -> None:
    out = Output(str(tmp_path), "stage", "0" * 64)
    work = Work("stage", {}, out, Place(root=str(tmp_path), data_workers=_WORKERS), Events(None, "stage"))
    is_bad = tmp_path / "bad"
    is_bad.touch()

    def do(number: int) -> Summary:
        from data.errors import ShardError

        if number == 3 and is_bad.exists():
            raise ShardError("shard 3: is bad; mend it")
        return {"number": number}

    names = [str(number) for number in range(5)]
    with pytest.raises(ShardError) as caught:
        each_shard(work, "step", names, do)
    assert str(caught.value) == "shard 3: is bad; mend it"
    is_bad.unlink()
    assert [summary["number"] for summary in each_shard(work, "step", names, do)] == [0, 1, 2, 3, 4]
