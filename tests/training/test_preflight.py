"""What is said before a stage starts: every misfit at once, with the numbers and what would fit; nothing heavy."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from data import storage
from data.artifacts import Artifact, Record
from data.errors import ModelError
from data.place import Place
from training import machine, preflight, resources
from training.preflight import (
    Pairs,
    check,
    check_sizes,
    pair_findings,
    phase_sizes,
    place_findings,
    sizes_of,
    stage_findings,
    worker_findings,
)  # fmt: skip
from training.resources import cpu_finding, disk_finding, gpu_findings, memory_finding
from training.sizes import count
from training.specs import (
    AdamW,
    ClusterSampler,
    FrozenModel,
    InfoNCE,
    Phase,
    Reinitialise,
    Term,
    TrainSpec,
    Upcycle,
    View,
)  # fmt: skip

VIT = count("ViT-B-32")
TERMS = {"contrast": Term(loss=InfoNCE())}


def phase(**changes):
    plain = {"objectives": TERMS, "optimizer": AdamW(lr=1e-3), "samples_seen": 4096, "global_batch_size": 512}
    return Phase(**{**plain, **changes})


def stage(**phases):
    return TrainSpec(init="init", pairs="pairs", selection="curate", phases=phases or {"a": phase()})


def place(root="runs", **changes):
    return Place(**{"root": str(root), "cpus_per_worker": 1, "loader_workers": 0, **changes})


def levels(findings):
    return [(finding.level, finding.what) for finding in findings]


@pytest.fixture
def parents(world, tmp_path):
    """Opened parents of a stage: 3 shards, 12,000 pairs of which 11,000 are selected, tiny towers."""

    def parent(name, kind, **counts):
        record = Record(kind=kind, stage=name, revision=1, fingerprint="0" * 64, config={}, counts=counts)
        return Artifact(str(tmp_path / name), record)

    storage.write_json(str(tmp_path / "init" / "open_clip_config.json"), {"model_cfg": world.TINY})
    return {
        "init": parent("init", "checkpoint"),
        "pairs": parent("pairs", "shard_set", pairs=12_000, shards=3),
        "selection": parent("curate", "selection", pairs=12_000, kept=11_000),
    }


def test_three_shards_serve_four_ranks_with_two_workers_each():
    spec, where = stage(), place(train_workers=4, loader_workers=2)
    (found,) = pair_findings(spec, where, Pairs(3, 12_000))
    assert found.level == "ok"
    assert found.line() == (
        "3 shards, 12,000 pairs: 4 ranks x 2 loader workers; 3,000 pairs a rank and epoch; "
        "no shard is repeated or dropped"
    )
    odd = next(iter(pair_findings(spec, where, Pairs(3, 12_000, 11_002)))).line()
    assert "12,000 pairs of which 11,002 are selected" in odd
    assert "2,750 pairs a rank" in odd


def test_an_epoch_below_a_batch_is_a_warning_and_no_pairs_are_unfit():
    spec, where = stage(a=phase(), b=phase(samples_seen=0)), place(train_workers=4)
    warning = [f for f in pair_findings(spec, where, Pairs(1, 510)) if f.level == "warning"]
    assert len(warning) == 1
    assert "phase 'a': an epoch has 510 pairs, a global batch 512" in warning[0].line()
    assert "lower global_batch_size to 508" in warning[0].fix
    assert ("unfit", "pairs") in levels(pair_findings(spec, where, Pairs(1, 510, 0)))
    unknown = list(pair_findings(spec, where, Pairs()))
    assert "not known before ingest has run" in unknown[0].line()
    clustered = stage(a=phase(view=View(sampler=ClusterSampler(phases=("init",)))))
    assert "remainder" in list(pair_findings(clustered, where, Pairs(1, 5120)))[1].line()


def test_all_misfits_come_at_once_and_check_raises_the_first(parents, tmp_path):
    spec = stage(a=phase(global_batch_size=18), b=phase(samples_seen=5), c=phase(global_batch_size=6))
    where = place(tmp_path, train_workers=4, gpus_per_worker=1)
    found = stage_findings(spec, where, Pairs(3, 12_000), {"init": VIT})
    said = [finding.line() for finding in found if finding.level == "unfit"]
    assert said == [
        "phase 'a': global_batch_size 18 does not divide by 4 workers; use 16, or other train_workers",
        "phase 'b': samples_seen 5 is below one global batch of 512; raise it to 512, or lower global_batch_size",
        "phase 'c': global_batch_size 6 does not divide by 4 workers; use 4, or other train_workers",
    ]
    with pytest.raises(ModelError, match=r"^phase 'a': global_batch_size 18"):
        check_sizes(spec, 4)
    check_sizes(stage(a=phase(global_batch_size=18, samples_seen=18)), 3)
    with pytest.raises(ModelError, match=r"global_batch_size 18 does not divide by 4") as caught:
        check(spec, place(tmp_path, train_workers=4), parents)
    assert "\n" not in str(caught.value)


def test_a_stage_that_fits_says_how_its_pairs_are_dealt(parents, tmp_path, monkeypatch):
    monkeypatch.setattr(preflight, "usable_cpus", lambda: 4)
    where = place(tmp_path, train_workers=2, loader_workers=1)
    assert check(stage(), where, parents) == [
        "3 shards, 12,000 pairs of which 11,000 are selected: 2 ranks x 1 loader workers; 5,500 pairs a rank and "
        "epoch; no shard is repeated or dropped"
    ]
    monkeypatch.setattr(preflight, "usable_cpus", lambda: 1)
    assert check(stage(), where, parents)[0].startswith("2 ranks x (1 threads + 1 loaders) need 2 of 1 CPU; ")


def test_fewer_workers_are_enough_where_the_place_says_so():
    spec = stage(a=phase(global_batch_size=12), b=phase(global_batch_size=8))
    assert levels(worker_findings(spec, place(train_workers=4, min_train_workers=1))) == [
        ("ok", "workers"),
        ("ok", "batch"),
    ]
    warning, batch = worker_findings(spec, place(train_workers=5, min_train_workers=2))
    assert warning.line() == "2 to 5 workers: batches divide by 2, 4; trains with 4 at most"
    assert (warning.level, batch.level) == ("warning", "ok")
    warning, _ = worker_findings(spec, place(train_workers=4, min_train_workers=3))
    assert (warning.level, warning.fix) == ("warning", "with fewer than 4 it ends")
    (none,) = worker_findings(spec, place(train_workers=7, min_train_workers=5))
    assert none.level == "unfit"
    (above,) = worker_findings(spec, place(train_workers=2, min_train_workers=3))
    assert above.line() == "min_train_workers 3 is above train_workers 2; use 2 or fewer"


@pytest.mark.parametrize(
    ("ranks", "threads", "loaders", "cpus", "fix"),
    [
        (4, 1, 1, 8, ""),
        (1, 2, 1, 2, ""),
        (4, 4, 2, 16, "cpus_per_worker 3 fits"),
        (4, 1, 2, 4, "cpus_per_worker 1 with loader_workers 1 fits"),
        (4, 1, 0, 2, "train_workers 2 with cpus_per_worker 1 and loader_workers 1 fits"),
    ],
)
def test_more_threads_than_cpus_is_a_warning_with_what_fits(ranks, threads, loaders, cpus, fix):
    found = cpu_finding(place(train_workers=ranks, cpus_per_worker=threads, loader_workers=loaders), cpus)
    assert (found.level, found.fix) == ("warning" if fix else "ok", fix)
    if fix:
        words = dict(zip(fix.split()[::1], fix.split()[1:], strict=False))
        fitting = {
            key: int(words[key]) for key in ("train_workers", "cpus_per_worker", "loader_workers") if key in words
        }
        plain = {"train_workers": ranks, "cpus_per_worker": threads, "loader_workers": loaders}
        assert cpu_finding(place(**{**plain, **fitting}), cpus).level == "ok"


def test_gpus_are_counted_and_their_precision_is_known():
    asked = place(train_workers=4, gpus_per_worker=1)
    (none,) = gpu_findings(asked, [])
    assert none.line() == "4 GPUs asked for, CUDA sees 0; gpus_per_worker 0 fits; or look at CUDA_VISIBLE_DEVICES"
    (two,) = gpu_findings(asked, ["NVIDIA L4"] * 2)
    assert two.fix.startswith("train_workers 2 fits")
    assert levels(gpu_findings(asked, ["NVIDIA L4"] * 4)) == [("ok", "gpus")]
    assert levels(gpu_findings(asked, None)) == [("ok", "gpus")]
    assert levels(gpu_findings(asked, ["Tesla T4"] * 4)) == [("ok", "gpus"), ("warning", "precision")]
    double = place(train_workers=2, gpus_per_worker=2, precision="float32")
    assert "use train_workers 4 with gpus_per_worker 1" in list(gpu_findings(double, ["Tesla T4"] * 4))[1].line()
    assert list(gpu_findings(place(), [])) == []


def test_bf16_on_a_cpu_without_it_is_a_warning(monkeypatch):
    for has, expected in ((True, []), (False, [("warning", "precision")])):
        monkeypatch.setattr(resources.machine, "has_bf16_cpu", lambda has=has: has)
        assert levels(gpu_findings(place(precision="bf16"), [])) == expected


def test_compile_needs_a_compiler(monkeypatch, tmp_path):
    assert ("unfit", "compile") not in levels(place_findings(place(tmp_path)))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert ("unfit", "compile") in levels(place_findings(place(tmp_path, compile=True)))


def sized(spec, where, budget_gb, **models):
    models = {"init": VIT, **models}
    return memory_finding(spec, where, phase_sizes(spec, VIT), models, int(budget_gb * 1e9))


def test_memory_that_does_not_suffice_names_the_chunk_that_fits():
    spec, where = stage(a=phase(global_batch_size=4096)), place(train_workers=2)
    found = sized(spec, where, 16)
    assert found.level == "unfit"
    assert "phase 'a': about" in found.said
    chunk = int(found.fix.split()[1])
    assert found.fix == f"chunk_pairs {chunk} fits"
    assert sized(stage(a=phase(global_batch_size=4096, chunk_pairs=chunk)), where, 16).level == "ok"
    assert sized(stage(a=phase(global_batch_size=4096, chunk_pairs=4 * chunk)), where, 16).level != "ok"
    need = sum(value for key, value in found.values.items() if key != "available") / 1e9
    assert sized(spec, where, need * 1.01).level == "warning"
    assert sized(spec, where, need * 1.2).level == "ok"
    assert "no chunk_pairs fits" in sized(spec, where, 1).fix
    assert "parallel fsdp" in sized(spec, place(train_workers=8), 3.4).fix


def test_a_chunk_that_saves_nothing_is_told():
    spec = stage(a=phase(chunk_pairs=64))
    assert "without chunk_pairs a step computes a quarter less" in sized(spec, place(), 64).fix
    assert sized(stage(), place(), 64).fix == ""
    found = stage_findings(spec, place(train_workers=8), Pairs(), {"init": VIT})
    assert next(f for f in found if f.what == "chunks").said.endswith("one piece, nothing saved")


def test_what_is_frozen_needs_no_gradients_and_teachers_need_weights():
    whole, frozen = (sized(stage(a=phase(trainable=t)), place(), 64).values for t in (("*",), ("logit_scale",)))
    assert whole["optimizer"] == 8 * VIT.parameters
    assert frozen["optimizer"] == 8
    role = "phases.a.teachers.old.checkpoint"
    taught = stage(a=phase(teachers={"old": FrozenModel(checkpoint="init")}))
    assert sized(taught, place(), 64, **{role: VIT}).values["weights"] == 2 * whole["weights"]
    assert "not checked" in sized(taught, place(), 64, **{role: None}).said


def test_surgeries_change_the_sizes_on_the_way():
    spec = stage(
        a=phase(), router=phase(surgeries=(Upcycle(experts=("init", "a"), top_k=1),), start="a"),
        student=phase(surgeries=(Reinitialise(architecture="ViT-S-32"),)), last=phase(start="student"),
    )  # fmt: skip
    sizes = phase_sizes(spec, VIT)
    assert sizes["a"] == VIT
    assert sizes["router"].parameters > 1.5 * VIT.parameters
    assert sizes["router"].forward_flops() == pytest.approx(VIT.forward_flops(), rel=1e-3)
    assert sizes["last"] == sizes["student"] == count("ViT-S-32")
    assert phase_sizes(spec, None)["a"] is None


def test_a_checkpoints_folder_gives_its_sizes_mixture_included(parents, world):
    assert sizes_of(parents["init"]) == count(world.TINY)
    layout = {"surgery": "upcycle", "num_experts": 2, "top_k": 1, "image_layers": 1, "text_layers": None}
    storage.write_json(parents["init"].at("clipworks.json"), {"surgeries": [layout]})
    assert sizes_of(parents["init"]) == count(world.TINY, [layout]) != count(world.TINY)


def test_a_full_disk_is_unfit_and_a_bucket_is_not_checked(monkeypatch, tmp_path):
    spec, needed = stage(), 5 * 12 * VIT.parameters
    for free, level in ((needed - 1, "unfit"), (needed, "ok"), (None, "ok")):
        monkeypatch.setattr(machine, "free_disk", lambda root, free=free: free)
        found = disk_finding(spec, place(tmp_path, keep_checkpoints=3), {"a": VIT})
        assert found.level == level
        assert found.values["needed"] == needed
    assert machine.free_disk("s3://bucket/runs") is None


def test_a_root_that_is_not_there_is_tried_above_and_not_made(tmp_path):
    root = tmp_path / "a" / "b"
    assert machine.why_not_writable(str(root)) is None
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    (found,) = [f for f in place_findings(place(tmp_path / "file" / "runs")) if f.what == "root"]
    assert found.level == "unfit"
    assert "a file is where a folder must be" in found.line()


def test_a_bucket_is_tried_with_the_credentials_there_are(seaweed, monkeypatch):
    assert machine.why_not_writable(f"s3://{seaweed.bucket}/runs") is None
    assert storage.list_files(f"s3://{seaweed.bucket}/runs", recursive=True) == []
    missing = machine.why_not_writable("s3://no-such-bucket/runs")
    assert missing is not None
    assert "s3://no-such-bucket/runs" in missing
    assert "\n" not in missing
    from data.s3 import PatientS3

    PatientS3.clear_instance_cache()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    refused = machine.why_not_writable(f"s3://{seaweed.bucket}/runs")
    assert refused is not None
    assert "check permissions or credentials" in refused


def test_memory_is_what_is_available_or_what_a_container_leaves(tmp_path):
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    for path, text in {
        proc / "meminfo": "MemTotal: 99 kB\nMemAvailable: 8000 kB\n",
        proc / "self" / "cgroup": "4:memory:/job/7\n0::/job/7\n",
        cgroup / "memory" / "job" / "memory.limit_in_bytes": "5000",
        cgroup / "memory" / "job" / "memory.usage_in_bytes": "2000",
        cgroup / "memory" / "job" / "memory.stat": "total_inactive_file 500\n",
        cgroup / "memory.max": "max",
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert machine.available_memory(proc, cgroup) == 3500
    (cgroup / "memory.max").write_text("4000")
    (cgroup / "memory.current").write_text("1000")
    assert machine.available_memory(proc, cgroup) == 3000
    assert machine.available_memory(proc, tmp_path / "none") == 8000 * 1024
    assert machine.available_memory(tmp_path / "none", tmp_path / "none") is None


def test_gpus_are_those_of_the_driver_that_cuda_may_see(tmp_path, monkeypatch):
    for number in range(3):
        folder = tmp_path / "driver" / "nvidia" / "gpus" / f"0000:0{number}:00.0"
        folder.mkdir(parents=True)
        (folder / "information").write_text("Model: \t\t NVIDIA L4\nIRQ: 7\n")
    dev = tmp_path / "dev"
    dev.mkdir()
    for value, expected in (
        (None, 3),
        ("", 0),
        ("-1", 0),
        ("0,2", 2),
        ("1", 1),
        ("0,-1,2", 1),
        ("7", 0),
        ("GPU-ab12", 1),
    ):
        if value is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert machine.visible_gpus(tmp_path, dev) == ["NVIDIA L4"] * expected, value
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert machine.visible_gpus(tmp_path / "none", dev) == []
    (dev / "nvidia0").touch()
    (dev / "nvidiactl").touch()
    assert machine.visible_gpus(tmp_path / "none", dev) == [""]
    (dev / "nvidia0").unlink()
    (dev / "kfd").touch()
    assert machine.visible_gpus(tmp_path / "none", dev) is None


def test_a_cluster_elsewhere_is_not_judged_by_this_machine(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert machine.trains_elsewhere() is None
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert machine.trains_elsewhere() is None
    monkeypatch.setenv("RAY_ADDRESS", "ray://203.0.113.9:10001")
    assert machine.trains_elsewhere() == "ray://203.0.113.9:10001"
    found = place_findings(place(tmp_path, train_workers=512, gpus_per_worker=1))
    assert levels(found) == [("ok", "root"), ("ok", "machine")]
    assert resources.memory_of_a_rank(place(tmp_path)) is None


def test_nothing_heavy_is_loaded():
    heavy = "{'torch', 'open_clip', 'ray', 'kfp'}"
    script = f"import sys, training.preflight; sys.exit(','.join({heavy} & sys.modules.keys()) or 0)"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root, env={**os.environ})
    assert done.returncode == 0, done.stderr
