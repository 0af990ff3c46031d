"""What a distillation step costs with a teacher that runs, with its cached features, and without a teacher.

    python -m benchmarks.teacher_cache                                  # ViT-B-32 teaches a tower of a third its width
    python -m benchmarks.teacher_cache --teacher small --pairs 16       # a minute

A step is forward, loss and backward of the student on one batch, and the teacher's targets for it: a forward pass of
the frozen towers, or rows of a feature set on disk. Contenders take turns in one process; on a CPU a turn's time is
the process's own, over all its threads. To make the cache costs one forward pass a pair, once: every further epoch
over the pairs, every further student and every restart saves one.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.ratios import print_result, ratios, spread, take_turns

RUNNING, CACHED, ALONE = "running teacher", "cached teacher", "no teacher"
SMALL = {
    "embed_dim": 512,
    "vision_cfg": {"image_size": 224, "patch_size": 32, "width": 256, "head_width": 64, "layers": 4},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 256, "heads": 4, "layers": 4},
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--teacher", default="ViT-B-32", help="architecture, with random weights; `small`: the student's"
    )
    parser.add_argument("--pairs", type=int, default=64, help="of a batch")
    parser.add_argument("--cached", type=int, default=100_000, help="pairs in the feature set")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    import torch

    from training.sizes import count

    torch.set_num_threads(chosen.threads)
    teacher, student = count(SMALL if chosen.teacher == "small" else chosen.teacher), count(SMALL)
    with tempfile.TemporaryDirectory() as folder:
        found = take_turns(contenders(chosen, folder), chosen.rounds)
    print_result(found, CACHED, RUNNING, "s a step", "below 1")
    print(f"  {CACHED} / {ALONE}: {spread(ratios(found[CACHED], found[ALONE]))}   bar: 1.05")
    step, extra = student.training_flops(), teacher.forward_flops()
    if step and extra:
        print(f"  {ALONE} / {RUNNING} by FLOPs: {step / (step + extra):.2f}")


def contenders(chosen: argparse.Namespace, folder: str) -> dict[str, Callable[[], float]]:
    """A step with each kind of teacher."""
    from training.specs import CachedFeatures, FrozenModel
    from training.teachers import Teacher, build_teacher
    from training.towers import create_towers, save_towers

    architecture = SMALL if chosen.teacher == "small" else chosen.teacher
    teacher, student = create_towers(architecture, seed=1), create_towers(SMALL)
    batch = make_batch(chosen.pairs, chosen.cached)
    made = {
        "checkpoint": commit(folder, "teacher", "checkpoint", lambda uri: save_towers(teacher, uri)),
        "features": commit(folder, "features", "feature_set", lambda uri: write_cache(uri, teacher.embed_dim, chosen)),
    }
    teachers: dict[str, Teacher | None] = {
        RUNNING: build_teacher(FrozenModel(checkpoint="c"), {"t.checkpoint": made["checkpoint"]}, "t"),
        CACHED: build_teacher(CachedFeatures(features="f"), {"t.features": made["features"]}, "t"),
        ALONE: None,
    }
    return {name: step(student, one, batch) for name, one in teachers.items()}


def step(student: Any, teacher: Any, batch: Any) -> Callable[[], float]:
    """A function that takes a step and says how long that took."""
    import torch

    from training.inputs import model_inputs
    from training.objectives import Context, build_objective
    from training.specs import InfoNCE, SimilarityRows

    context = Context(0.0, 0, 1, torch.Generator())
    contrast, rows = build_objective(InfoNCE()), build_objective(SimilarityRows(teacher="t"))

    def run() -> float:
        before = time.process_time()
        names = student(model_inputs(student, batch, torch.device("cpu")))
        loss = contrast(names, context).value
        if teacher is not None:
            targets: Mapping[str, Any] = teacher.targets(batch)
            loss = loss + rows({**names, **{f"t.{name}": value for name, value in targets.items()}}, context).value
        student.zero_grad()
        loss.backward()
        return time.process_time() - before

    return run


def make_batch(pairs: int, cached: int) -> Any:
    """Pairs from all over the cache."""
    import torch

    from training.loading import Batch

    random = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (pairs, 3, 224, 224), generator=random, dtype=torch.uint8)
    text = torch.randint(1, 1000, (pairs, 77), generator=random)
    text[:, 15:] = 0
    text[:, 15] = 49407
    chosen = torch.randperm(cached, generator=random)[:pairs].tolist()
    return Batch(image, {"text": text}, [f"p{n}" for n in chosen], [f"caption {n}" for n in chosen], {})


def write_cache(uri: str, width: int, chosen: argparse.Namespace) -> None:
    """Features of so many pairs, random but of length 1."""
    import numpy as np

    from data.features import write_features

    random = np.random.default_rng(0)
    rows = random.standard_normal((2, chosen.cached, width), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
    numbers = range(chosen.cached)
    write_features(uri, [f"p{n}" for n in numbers], rows[0], [f"caption {n}" for n in numbers], rows[1])


def commit(root: str, name: str, kind: str, write: Callable[[str], None]) -> Any:
    """An artifact made by hand."""
    from data.artifacts import Output, Record

    print_ = name.encode().hex().ljust(64, "0")
    out = Output(root, name, print_)
    with out.lock():
        write(out.uri)
        metrics = {"logit_scale": 14.3}
        return out.commit(Record(kind=kind, stage=name, revision=1, fingerprint=print_, config={}, metrics=metrics))


if __name__ == "__main__":
    main()
