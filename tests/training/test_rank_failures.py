"""What a rank that fails leaves behind: where it was, what it wrote last; and what the driver makes of all ranks."""

import importlib.util
import json
import os
import socket
import sys
from pathlib import Path

import pytest
import torch

from data import storage
from data.errors import ModelError, ShardError, facts_of, output_of
from data.shards import ShardSet, read_parquet
from training import fit
from training.specs import AdamW, InfoNCE, Phase, Term, TrainSpec

SPEC = TrainSpec(
    init="init", pairs="pairs", selection="selection",
    phases={"a": Phase(
        objectives={"c": Term(loss=InfoNCE())}, optimizer=AdamW(lr=1e-3), samples_seen=36, global_batch_size=18
    )},
)  # fmt: skip


@pytest.fixture(scope="module")
def ranks():
    spec = importlib.util.spec_from_file_location("clipworks_tests_ranks_f", Path(__file__).with_name("ranks.py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def job(world, ranks, tmp_path):
    return ranks.jobs(world, tmp_path)("stage", SPEC)


def spoil(job):
    """Overwrite every picture of the second shard; no uid of the first is touched."""
    pairs = ShardSet(fit_open(job.parents["pairs"]))
    with Path(pairs.url(1)).open("r+b") as tar:
        for row in read_parquet(pairs.artifact.at("index", "00001.parquet"), ["offset", "bytes"]).to_pylist():
            tar.seek(row["offset"])
            tar.write(bytes(row["bytes"]))


def fit_open(uri):
    from data.artifacts import open_artifact

    return open_artifact(uri)


def note(job, rank=0):
    return storage.read_json(storage.join(job.state_uri, f"error-{rank}.json"))


def test_a_rank_that_meets_a_bad_picture_names_it_its_shard_and_what_it_did(job):
    spoil(job)
    with pytest.raises(ShardError, match="not a readable image"):
        fit.run_rank(job, 0, 1, torch.device("cpu"))
    said = note(job)
    assert (said["kind"], said["type"]) == ("user", "ShardError")
    assert said["facts"]["shard"] == "00001"
    assert said["facts"]["uid"] in said["message"]
    assert said["facts"]["doing"].startswith("step ")


def test_the_driver_raises_it_with_the_same_facts_the_rank_and_the_lines_of_all(job):
    spoil(job)
    with pytest.raises(ShardError):
        fit.run_rank(job, 0, 1, torch.device("cpu"))
    with pytest.raises(ShardError) as caught, fit._told_by_ranks(job):
        fit.raise_if_final(fit.first_failure(job))
    facts = facts_of(caught.value)
    assert facts["rank"] == "0"
    assert facts["shard"] == "00001"
    assert facts["uid"] in str(caught.value)
    assert output_of(caught.value)["rank 0"][0].startswith("(user: ShardError: uid ")


def test_what_a_rank_wrote_to_its_file_is_in_its_note_without_secrets(job, ranks, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-of-many-letters")

    def rank():
        with (tmp_path / "out").open("w") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        os.write(1, b"NCCL: a word in native code\n")
        os.write(2, b"key a-secret-of-many-letters\n")
        fit._register(job, 2)
        fit.note_failure(job, 2, "stall", "rank 2 stands still", facts={"doing": "step 3, backward"})

    assert ranks.in_child(rank) == 0
    assert note(job, 2)["lines"] == ["NCCL: a word in native code", "key ***"]
    assert note(job, 2)["facts"] == {"doing": "step 3, backward"}


def test_a_rank_that_was_killed_is_told_by_its_file(job, tmp_path):
    (tmp_path / "worker.out").write_text("step 4\nabout to need 90 GB\n")
    for rank, host in ((0, socket.gethostname()), (1, "another-machine")):
        where = {"rank": rank, "pid": 1, "host": host, "output": [str(tmp_path / "worker.out")]}
        storage.write_json(storage.join(job.state_uri, f"rank-{rank}.json"), where)
    with pytest.raises(ConnectionError) as caught, fit._told_by_ranks(job):
        raise ConnectionError("Ray lost a worker")
    told = output_of(caught.value)
    assert told["rank 0"][0].startswith("(left no word: killed")
    assert told["rank 0"][1:] == ["step 4", "about to need 90 GB"]
    assert len(told["rank 1"]) == 1  # its file is not here


def test_notes_of_an_attempt_that_is_over_are_forgotten(job):
    fit._register(job, 0)
    with pytest.raises(ModelError), fit._told_by_ranks(job):
        fit.note_failure(job, 0, "user", "too large", "ModelError")
        raise ModelError("too large")
    fit.forget_failures(job)
    assert fit.last_lines(job) == {}
    assert fit.first_failure(job) is None


def test_a_finished_rank_says_what_it_had(job, tmp_path):
    fit.run_rank(job, 0, 1, torch.device("cpu"))
    measured = json.loads(Path(job.state_uri, "outcome.json").read_text())["measured"]
    assert (measured["workers"], measured["cpus"], measured["gpus"]) == (1, 1.0, 0)
    assert measured["device"]
