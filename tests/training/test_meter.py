"""What the meter makes of a clock that the test turns, of ranks, and of a profile; peaks by name and by measuring."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from training import devices, meter
from training.devices import Peak, find_device, peak
from training.meter import Meter, Profile, over_ranks

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """A clock in seconds that stands still unless the test turns it; the peak is 1000 FLOP/s."""
    now = [100.0]
    monkeypatch.setattr(meter.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(meter, "peak", lambda device, dtype: Peak(1000.0, "measured"))

    def turn(seconds):
        now[0] += seconds

    return turn


def steps(made, clock, count, pairs=4, tokens=8):
    """`count` steps of 1 s for data, 2 s and 3 s forward, 4 s backward, 2 s outside of all spans."""
    for _ in range(count):
        with made.span("data"):
            clock(1)
        for seconds in (2, 3):
            with made.span("forward"):
                clock(seconds)
        made.saw(pairs, tokens)
        with made.span("backward"):
            clock(4)
        clock(2)


def test_a_reading_says_where_time_went_since_the_last_one(clock):
    made = Meter(lambda tokens: 10 * tokens, CPU, 1)
    clock(1000)  # building the model is no step
    steps(made, clock, 5)
    read = made.reading(pairs=4)
    assert read["pairs_per_second"] == read["rank_pairs_per_second"] == pytest.approx(4 / 12)
    assert read["data_wait_fraction"] == pytest.approx(1 / 12)
    assert (read["seconds_data"], read["seconds_forward"], read["seconds_backward"]) == (1, 5, 4)
    assert read["flops_per_second"] == pytest.approx(4 * 80 / 12)
    assert read["mfu"] == pytest.approx(4 * 80 / 12 / 1000)
    assert read["memory_bytes"] > 10e6
    steps(made, clock, 2, tokens=4)
    again = made.reading(pairs=4)
    assert again["seconds_forward"] == 5
    assert again["mfu"] == pytest.approx(read["mfu"] / 2)


def test_a_span_that_is_open_while_reading_counts_in_the_next(clock):
    made = Meter(lambda tokens: 1, CPU, 1)
    steps(made, clock, 1)
    with made.span("after"):
        clock(6)
        assert made.reading(4)["seconds_after"] == 0
        clock(1)
    steps(made, clock, 1)
    assert made.reading(4)["seconds_after"] == 7


def test_what_is_not_counted_is_not_reported(clock):
    made = Meter(lambda tokens: None, CPU, 1)
    steps(made, clock, 3)
    assert not {"mfu", "flops_per_second"} & made.reading(4).keys()


def test_a_reading_before_any_step_is_our_own_mistake(clock):
    with pytest.raises(AssertionError, match="before the first step"):
        Meter(lambda tokens: 1, CPU, 1).reading(4)


def test_the_slowest_rank_is_the_one_that_others_wait_for():
    rows = [[10.0, 0.5, 1e9], [10.0, 2.0, 3e9], [9.0, 0.5, 2e9]]
    read = over_ranks(rows)
    assert read["pairs_per_second"] == 29
    assert (read["rank_pairs_per_second_min"], read["rank_pairs_per_second_max"]) == (9, 10)
    assert read["slowest_rank"] == 1
    assert read["slowest_rank_lag_seconds"] == pytest.approx(1.0)
    assert read["memory_bytes"] == 3e9
    assert "slowest_rank" not in over_ranks(rows[:1])


TWO_RANKS = """
import json, sys, torch, time
import torch.distributed as dist, torch.multiprocessing as mp
from training.meter import Meter

def one(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    meter = Meter(lambda tokens: 100, torch.device("cpu"), 2)
    with meter.span("data"):
        time.sleep(0.3 * rank)
    read = meter.reading(8)
    open(f"{folder}/{rank}.json", "w").write(json.dumps(read))
    dist.destroy_process_group()

mp.start_processes(one, (sys.argv[1],), nprocs=2, start_method="fork")
"""


def test_ranks_read_the_same_of_all_and_their_own_of_themselves(tmp_path):
    subprocess.run(
        [sys.executable, "-c", TWO_RANKS, str(tmp_path)], check=True, timeout=120, cwd=Path(__file__).parents[2]
    )
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["slowest_rank"] == second["slowest_rank"] == 1
    assert first["pairs_per_second"] == second["pairs_per_second"]
    rates = first["rank_pairs_per_second"], second["rank_pairs_per_second"]
    assert sum(rates) == pytest.approx(first["pairs_per_second"])
    assert min(rates) == first["rank_pairs_per_second_min"] == pytest.approx(second["rank_pairs_per_second"])


@pytest.mark.parametrize(("wanted", "seen", "said"), [(2, 7, "trace of 2 steps"), (9, 5, "trace of 3 steps")])
def test_a_profile_traces_steps_after_two_of_warm_up(tmp_path, wanted, seen, said):
    heard = []
    with Profile(wanted, str(tmp_path / "traces"), 3, heard.append) as profile:
        for number in range(seen):
            with torch.profiler.record_function(f"my step {number}"):
                torch.ones(8) @ torch.ones(8)
            profile.step()
    path = tmp_path / "traces" / "rank-3.trace.json.gz"
    assert heard == [f"{said}: {path}"]
    names = {event["name"] for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]}
    assert {f"my step {n}" for n in range(10)} & names == {f"my step {n}" for n in range(2, min(2 + wanted, seen))}


def test_a_profile_of_nothing_and_of_a_short_phase(tmp_path):
    heard = []
    with Profile(0, str(tmp_path), 0, heard.append) as profile:
        profile.step()
    assert heard == []
    with Profile(4, str(tmp_path), 0, heard.append) as profile:
        profile.step()
    assert heard == ["no trace: 1 steps, and the first 2 are not traced"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "bf16", "memory_gb"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12, 80), ("NVIDIA H100 PCIe", 756e12, 80), ("NVIDIA H100 NVL", 835e12, 94),
        ("NVIDIA H200", 989e12, 141), ("NVIDIA GH200 480GB", 990e12, 96), ("NVIDIA B200", 2250e12, 180),
        ("NVIDIA GB200", 2500e12, 186), ("NVIDIA A100-SXM4-40GB", 312e12, 40), ("NVIDIA A100 80GB PCIe", 312e12, 80),
        ("NVIDIA A10G", 70e12, 24), ("NVIDIA A10", 125e12, 24), ("NVIDIA L4", 121e12, 24), ("NVIDIA L40S", 362e12, 48),
        ("Tesla T4", 0, 16), ("Tesla V100-SXM2-32GB", 0, 32), ("NVIDIA GeForce RTX 4090", 165.2e12, 24),
        ("AMD Instinct MI300X", 1307e12, 192), ("AMD Instinct MI250X/MI250", 191.5e12, 64),
    ],
)  # fmt: skip
def test_devices_are_known_by_the_name_their_driver_gives(name, bf16, memory_gb):
    row = find_device(name)
    assert (row.bf16, row.memory_bytes) == (bf16, memory_gb * 10**9)


def test_a_cpus_peak_is_measured_once():
    devices._measured.cache_clear()
    found = peak(CPU, torch.float32)
    assert found.source == "measured"
    assert found.flops_per_second > 1e8
    assert peak(CPU, torch.float32) == found
    assert find_device("a processor that nobody knows") is None


def test_a_gpus_peak_is_the_tables_for_its_precision(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    cuda = torch.device("cuda")
    assert peak(cuda, torch.bfloat16) == (312e12, "NVIDIA A100 data sheet, dense bf16")
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "highest")
    assert peak(cuda, torch.float32).flops_per_second == 19.5e12
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert peak(cuda, torch.float32).flops_per_second == 156e12


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_timed_by_its_own_events():
    made = Meter(lambda tokens: 2 * 2048**3, torch.device("cuda"), 1)
    matrix = torch.randn(2048, 2048, device="cuda")
    for _ in range(5):
        with made.span("data"):
            pass
        with made.span("forward"):
            matrix @ matrix
        made.saw(1, 8)
    read = made.reading(1)
    assert read["seconds_forward"] > 0
    assert read["memory_bytes"] >= matrix.nbytes
    assert 0 < read["mfu"] < 1
