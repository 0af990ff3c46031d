"""Zero-shot and retrieval of one model on the same tars: clip_benchmark's own way against ours, and their numbers.

    python -m benchmarks.evaluation [--case photographs|small] [--pairs N] [--turns 3] [--workers 2]
    python -m benchmarks.evaluation --scaling [--pairs 10000 --pairs 100000]

`photographs`: ViT-B-32 at 224 on textile photographs (package conformal-clip-data); `small`: the quickstart's ViT at 48
on JPEGs of 256 pixels. Weights are random. Each pair has a class and a caption of its own; one folder presents the tars
as classification, another as retrieval, as clip_benchmark wants them.

Theirs: clip_benchmark's builder, loader and metrics in float32, put together as its command line does; the model is
already loaded. Ours: ingest, split, embed (which loads the model) and evaluate through `run_stage`, nothing reused,
with 1,000 resamples and all rows written. Imports are excluded on both sides, by a turn that does not count.
Their `accuracy` does not run with the numpy of this environment (float() of an array); it is replaced by the same
through torch.topk.
`second task` is retrieval alone: ours on the features that are there, theirs from the tars again.
"""

import argparse
import io
import os
import shutil
import sys
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import evaluation_scaling
from benchmarks.pairs import captions, photographs
from benchmarks.ratios import print_result, ratios, spread, take_turns
from data import storage
from data.artifacts import Artifact
from data.place import Place
from data.specs import BenchmarkPool, HoldoutRest, IngestSpec, SplitSpec
from data.stage import StageSpec, run_stage
from evaluation.specs import Calibration, EvaluateSpec, Retrieval, Scored, TaskSpec, ZeroShot
from pipelines.recipes._emoji import tower
from training.specs import EmbedSpec, ModelSpec, Prompts

TEMPLATES = ("a photo of {c}.", "a picture of a {c}", "{c}")
CLASSES = tuple(f"{colour} {thing}" for colour in ("red", "dark", "woven", "old") for thing in ("cloth", "wall", "sky"))
KS = (1, 5, 10)
SHARDS = 4  # every loader worker has some
BATCH = 64  # clip_benchmark's default
SAME_WITHIN = 0.005  # forward passes of other sizes round otherwise: random weights leave some pictures near a tie


class Case(NamedTuple):
    """What is evaluated on what."""

    architecture: str | dict[str, Any]
    pictures: Callable[[int], Iterator[bytes]]
    pairs: int
    bar: str


def textile(count: int) -> Iterator[bytes]:
    """JPEGs of 250 x 250 pixels, of all three kinds."""
    spec = find_spec("conformal_clip_data")
    assert spec is not None, "package conformal-clip-data is not installed: make setup"
    files = sorted(Path(str(spec.origin)).parent.glob("data/textile_images/simulated/*/*.jpg"), key=lambda p: p.name)
    return (path.read_bytes() for path in islice(files, count))


CASES = {
    "photographs": Case("ViT-B-32", textile, 320, "at least 2 where loading dominates"),
    "small": Case(tower(96, 4, 1), lambda count: photographs(count, 0, 256), 4000, "at least 2"),
}


# ------------------------------------------------------------------------------------------------------------ the pairs


def write_set(folder: Path, pictures: Iterable[bytes], count: int) -> int:
    """Write tars of (jpg, cls, txt) and both faces of them; return how many pairs there are."""
    tars = folder / "tars"
    tars.mkdir(parents=True)
    names = captions(count, 7)
    done = 0
    pairs = ((number, content, next(names)) for number, content in enumerate(pictures))
    for shard in range(SHARDS):
        with tarfile.open(tars / f"{shard}.tar", "w") as tar:
            for number, content, caption in islice(pairs, -(-count // SHARDS)):
                done += 1
                text = f"{caption} {number}"  # a caption twice would be one candidate in ours and two in theirs
                label = str(number * 7919 % len(CLASSES))
                for ext, member in (("jpg", content), ("cls", label.encode()), ("txt", text.encode())):
                    info = tarfile.TarInfo(f"{number:07d}.{ext}")
                    info.size = len(member)
                    tar.addfile(info, io.BytesIO(member))
    (tars / "nshards.txt").write_text(str(SHARDS))
    for kind in ("classification", "retrieval"):
        face = folder / kind
        face.mkdir()
        (face / "test").symlink_to(tars)
        (face / "dataset_type.txt").write_text(kind)
        (face / "classnames.txt").write_text("\n".join(CLASSES))
        (face / "zeroshot_classification_templates.txt").write_text("\n".join(TEMPLATES))
    return done


# -------------------------------------------------------------------------------------------------------------- theirs


class Theirs:
    """clip_benchmark with a loaded model."""

    def __init__(self, folder: Path, checkpoint: str, workers: int) -> None:
        from clip_benchmark.metrics import zeroshot_classification  # type: ignore[import-untyped]
        from clip_benchmark.models import load_clip  # type: ignore[import-untyped]

        self.folder, self.workers = folder, workers
        self.model, self.transform, self.tokenizer = load_clip(
            "open_clip", f"local-dir:{checkpoint}", None, None, "cpu"
        )
        self.model.eval()
        zeroshot_classification.accuracy = _accuracy

    def zero_shot(self) -> dict[str, float]:
        """Metrics of its zeroshot_classification."""
        from clip_benchmark.metrics.zeroshot_classification import evaluate  # type: ignore[import-untyped]

        data, loader = self._load("classification", "zeroshot_classification")
        found = evaluate(self.model, loader, self.tokenizer, data.classes, data.templates, "cpu", amp=False)
        return {"top1": found["acc1"], "top5": found["acc5"], "mean_per_class_recall": found["mean_per_class_recall"]}

    def retrieval(self) -> dict[str, float]:
        """Metrics of its zeroshot_retrieval."""
        from clip_benchmark.metrics.zeroshot_retrieval import evaluate  # type: ignore[import-untyped]

        _, loader = self._load("retrieval", "zeroshot_retrieval")
        found = evaluate(self.model, loader, self.tokenizer, "cpu", amp=False, recall_k_list=list(KS))
        names = {"image_to_text": "text_retrieval", "text_to_image": "image_retrieval"}  # theirs say what is found
        return {f"{ours}_R@{k}": found[f"{theirs}_recall@{k}"] for ours, theirs in names.items() for k in KS}

    def _load(self, face: str, task: str) -> tuple[Any, Any]:
        import torch
        from clip_benchmark.datasets.builder import build_dataset  # type: ignore[import-untyped]

        data = build_dataset("wds/set", str(self.folder / face), self.transform, "test", task=task)
        batches = data.batched(BATCH)
        return data, torch.utils.data.DataLoader(batches, batch_size=None, shuffle=False, num_workers=self.workers)


def _accuracy(output: Any, target: Any, topk: tuple[int, ...] = (1,)) -> list[float]:
    # its own calls float() on an array of one element, which numpy 2.4 and later refuse
    hits = output.topk(max(topk), 1, True, True)[1] == target[:, None]
    return [hits[:, :k].any(dim=1).double().mean().item() for k in topk]


# ---------------------------------------------------------------------------------------------------------------- ours


class Ours:
    """Stages below one root."""

    def __init__(self, folder: Path, architecture: str | dict[str, Any]) -> None:
        self.url, self.place = str(folder / "classification"), Place(root=str(folder / "runs"))
        self.made = {"model": self._run("model", ModelSpec(architecture=architecture))}
        self.seconds: dict[str, float] = {}

    def forget(self) -> None:
        """Delete all but the model."""
        for uri in [artifact.uri for name, artifact in self.made.items() if name != "model"]:
            shutil.rmtree(uri)
        self.made = {"model": self.made["model"]}

    def both(self) -> dict[str, float]:
        """Zero-shot and retrieval from the tars."""
        self.forget()
        self._stage("pairs", IngestSpec(pool=BenchmarkPool(url=self.url)))
        self._stage("split", SplitSpec(pairs="pairs", holdouts={"test": HoldoutRest()}))
        embed = EmbedSpec(checkpoint="model", pairs="pairs", split="split", splits=("test",), prompts=(self.prompts,))
        self._stage("embed", embed)
        return self.evaluate("evaluate", ZeroShot(prompts=self.prompts), Retrieval(ks=KS))

    def evaluate(self, name: str, *tasks: TaskSpec) -> dict[str, float]:
        """Metric -> value of tasks on the features that are there."""
        scored = Scored(
            features="embed", pairs="pairs", split="split", splits=("test",), tasks={task.task: task for task in tasks}
        )
        if name in self.made:
            shutil.rmtree(self.made.pop(name).uri)
        self._stage(name, EvaluateSpec(sets={"set": scored}))
        rows = storage.read_json(self.made[name].at("report.json"))["rows"]
        return {row["metric"]: row["value"] for row in rows if not row["baseline"]}

    @property
    def prompts(self) -> Prompts:
        """The prompts that theirs reads from its files."""
        return Prompts(field="class", templates=TEMPLATES, classes=CLASSES)

    def _stage(self, name: str, spec: StageSpec) -> None:
        started = time.perf_counter()
        self.made[name] = self._run(name, spec)
        self.seconds[name] = time.perf_counter() - started

    def _run(self, name: str, spec: StageSpec) -> Artifact:
        parents = {role: self.made[stage].uri for role, (stage, _) in spec.roles().items()}
        return run_stage(name, spec, parents, self.place)


# ------------------------------------------------------------------------------------------------------------ the turns


def measure(name: str, pairs: int | None, turns: int, workers: int) -> bool:
    """Print a case's rates; True where the metrics of both agree."""
    case = CASES[name]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        count = write_set(folder, case.pictures(pairs or case.pairs), pairs or case.pairs)
        ours = Ours(folder, case.architecture)
        theirs = Theirs(folder, ours.made["model"].uri, workers)
        values: dict[str, dict[str, float]] = {"ours": {}, "theirs": {}}
        parts: dict[str, list[float]] = {}

        def rate(side: str, *work: Callable[[], dict[str, float]]) -> float:
            started = time.perf_counter()
            for one in work:
                values[side] |= one()
            return count / (time.perf_counter() - started)

        def ours_first() -> float:
            found = rate("ours", ours.both)
            for stage, seconds in ours.seconds.items():
                parts.setdefault(stage, []).append(seconds)
            return found

        found = take_turns(
            {
                "ours": ours_first,
                "clip_benchmark": lambda: rate("theirs", theirs.zero_shot, theirs.retrieval),
                "ours, second task": lambda: rate("ours", lambda: ours.evaluate("second", Retrieval(ks=KS))),
                "clip_benchmark, second task": lambda: rate("theirs", theirs.retrieval),
                "ours, calibration": lambda: rate("ours", lambda: ours.evaluate("third", _calibration(ours))),
            },
            turns,
        )
    print(f"\n{name}: {count} pairs, {len(CLASSES)} classes, {workers} loader workers of theirs")
    print_result(found, "ours", "clip_benchmark", "pictures/s", case.bar)
    second = ratios(found["ours, second task"], found["clip_benchmark, second task"])
    print(f"  second task on cached features: {spread(second)} times clip_benchmark's rate   bar: at least 10")
    for stage in ("pairs", "split", "embed", "evaluate"):
        print(f"  of ours, {stage:<19} {spread(parts[stage][1:])} s")
    return _agree(values["ours"], values["theirs"], count)


def _calibration(ours: Ours) -> TaskSpec:
    return Calibration(prompts=ours.prompts, fit=None)


def _agree(ours: dict[str, float], theirs: dict[str, float], count: int) -> bool:
    worst = 0.0
    for metric, value in theirs.items():
        worst = max(worst, abs(ours[metric] - value))
        print(f"  {metric:<28} ours {ours[metric]:.4f}  clip_benchmark {value:.4f}")
    print(f"  largest difference {worst:.4f} = {worst * count:.1f} pictures of {count}; agree: {worst <= SAME_WITHIN}")
    return worst <= SAME_WITHIN


def main() -> None:
    """Measure what is asked for; both cases unless one is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES)
    parser.add_argument("--pairs", type=int, action="append", help="default: the case's own")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="of clip_benchmark's loader")
    parser.add_argument("--scaling", action="store_true", help="time and memory of the evaluate stage by pictures")
    options = parser.parse_args()
    if options.scaling:
        evaluation_scaling.report(options.pairs or [10_000, 100_000])
        return
    os.environ.setdefault("TQDM_DISABLE", "1")
    warnings.filterwarnings("ignore", "WebDataset", UserWarning)  # clip_benchmark leaves shardshuffle to its default
    names = [options.case] if options.case else list(CASES)
    same = [
        measure(name, options.pairs[0] if options.pairs else None, options.turns, options.workers) for name in names
    ]
    sys.exit(0 if all(same) else 1)


if __name__ == "__main__":
    main()
