"""Time and memory of the evaluate stage by number of pictures, on features written by hand.

    python -m benchmarks.evaluation --scaling [--pairs 10000 --pairs 100000]

Zero-shot, calibration and retrieval over 100 classes and features of 512 numbers, with 1,000 resamples. Each size and
task runs in a fresh process. Memory is the peak of what the process holds by itself (RssAnon), above what it held
before the stage; mapped features are the page cache's. Retrieval compares every picture with every caption: its time
is quadratic by definition, so it is asked for the first size only.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from data.artifacts import Artifact, Output, Record, open_artifact
from data.features import write_features
from data.place import Place
from data.selection import write_split
from data.shards import CAPTION_SCHEMA, INDEX_SCHEMA, Shard, write_manifest, write_parquet
from data.stage import run_stage
from evaluation.specs import Calibration, EvaluateSpec, Retrieval, Scored, TaskSpec, ZeroShot
from training.specs import Prompts

CLASSES, DIM, SHARD_PAIRS = 100, 512, 10_000
PROMPTS = Prompts(field="class", classes=tuple(f"class {number}" for number in range(CLASSES)))
TASKS: dict[str, TaskSpec] = {
    "zero_shot": ZeroShot(prompts=PROMPTS),
    "calibration": Calibration(prompts=PROMPTS, fit=None),
    "retrieval": Retrieval(),
}


def write_world(folder: str, count: int) -> dict[str, str]:
    """Write a shard set, its split and features of a middling model; return their addresses by role."""
    random = np.random.default_rng(0)
    uids = [f"{number:08d}" for number in range(count)]
    labels = random.integers(0, CLASSES, count)
    texts = [*(f"class {number}" for number in range(CLASSES)), *(f"caption {uid}" for uid in uids)]
    classes_CD = _unit(random.normal(size=(CLASSES, DIM)))
    images_ND = _unit(classes_CD[labels] + 0.35 * random.normal(size=(count, DIM)))
    captions_ND = _unit(images_ND + 0.15 * random.normal(size=(count, DIM)))

    def shards(uri: str) -> None:
        made = []
        for at in range(0, count, SHARD_PAIRS):
            name, here = f"{at // SHARD_PAIRS:05d}", range(at, min(at + SHARD_PAIRS, count))
            rows = [
                {"uid": uids[n], "ext": "jpg", "offset": 0, "bytes": 1, "meta": json.dumps({"class": int(labels[n])})}
                for n in here
            ]
            spoken = [
                {"uid": uids[n], "source": "alt", "caption": f"caption {uids[n]}", "provenance": None} for n in here
            ]
            write_parquet(f"{uri}/index/{name}.parquet", pa.Table.from_pylist(rows, INDEX_SCHEMA))
            write_parquet(f"{uri}/captions/{name}.parquet", pa.Table.from_pylist(spoken, CAPTION_SCHEMA))
            made.append(Shard(name, f"shards/{name}.tar", len(rows), 0, ""))
        write_manifest(uri, made, [])

    def features(uri: str) -> None:
        write_features(uri, uids, images_ND, texts, np.concatenate([classes_CD, captions_ND]))

    split = pa.table({"uid": uids, "split": ["test"] * count})
    pairs = _put(folder, "pairs", "shard_set", {}, shards)
    parts = _put(folder, "split", "split", {"pairs": pairs}, lambda uri: write_split(uri, split))
    model = _put(folder, "model", "checkpoint", {}, lambda _: None)
    embedded = _put(folder, "embed", "feature_set", {"checkpoint": model, "pairs": pairs, "split": parts}, features)
    return {"pairs": pairs.uri, "split": parts.uri, "features": embedded.uri}


def _put(folder: str, name: str, kind: str, parents: dict[str, Artifact], write: object) -> Artifact:
    print_ = name.encode().hex().ljust(64, "0")
    out = Output(folder, name, print_)
    with out.lock():
        write(out.uri)  # type: ignore[operator]
        prints = {role: parent.fingerprint for role, parent in parents.items()}
        return out.commit(Record(kind=kind, stage=kind, revision=1, fingerprint=print_, config={}, parents=prints))


def _unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def measure(task: str, uris: dict[str, str], root: str) -> dict[str, float]:
    """Seconds, of all cores together too, and bytes of one evaluate stage in this process."""
    spec = EvaluateSpec(
        sets={"set": Scored(features="f", pairs="p", split="s", splits=("test",), tasks={task: TASKS[task]})}
    )
    spec.build(), TASKS[task].build()  # imports are no part of the stage
    parents = {f"sets.set.{role}": uri for role, uri in uris.items()}
    assert all(open_artifact(uri) for uri in uris.values())
    peak, done = [_own_bytes()], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            peak.append(_own_bytes())

    watcher, started, cpu = threading.Thread(target=watch), time.perf_counter(), time.process_time()
    watcher.start()
    run_stage(f"evaluate-{task}", spec, parents, Place(root=root))
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    done.set()
    watcher.join()
    return {"seconds": seconds, "cpu_seconds": cpu, "bytes": max(peak) - peak[0]}


def _own_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024


def report(sizes: Sequence[int]) -> None:
    """Measure every size in a fresh process a task; print time and memory, and their growth."""
    found: dict[str, list[dict[str, float]]] = {}
    for count in sizes:
        with tempfile.TemporaryDirectory() as folder:
            uris = write_world(folder, count)
            for task in TASKS:
                if task == "retrieval" and count != sizes[0]:
                    continue
                command = [sys.executable, "-m", "benchmarks.evaluation_scaling", task, json.dumps(uris), folder]
                one = json.loads(subprocess.check_output(command, text=True).splitlines()[-1])
                found.setdefault(task, []).append(one)
                print(
                    f"{task:<12} {count:>9,} pictures: {one['seconds']:6.2f} s, {one['cpu_seconds']:6.2f} CPU-s = "
                    f"{one['cpu_seconds'] / count * 1e6:5.0f} us a picture, {one['bytes'] / 2**20:6.0f} MiB = "
                    f"{one['bytes'] / count:6.0f} bytes a picture"
                )
    for task, ones in found.items():
        if len(ones) > 1:
            grown = sizes[-1] / sizes[0]
            cpu, memory = (ones[-1][name] / ones[0][name] for name in ("cpu_seconds", "bytes"))
            print(f"{task:<12} {grown:.0f} times the pictures: {cpu:.1f} times the CPU time, {memory:.1f} the memory")


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], json.loads(sys.argv[2]), sys.argv[3])))
