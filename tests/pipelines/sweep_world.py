"""A recipe so small that a trial takes a second: coloured pictures, a tiny model, one phase, a judged split."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

from data.place import Place
from data.stage import run_stage
from pipelines.recipe import Recipe

COLOURS = {"red": (220, 30, 30), "green": (30, 160, 40), "blue": (30, 40, 220), "pink": (250, 150, 200)}
TOWERS = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 32, "head_width": 16, "layers": 1},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
LR = "stages.pretrain.phases.p.optimizer.lr"


def make_pool(folder: Path, copies: int = 16) -> Path:
    """Plain pictures of four colours, with captions."""
    images = folder / "images"
    images.mkdir(parents=True)
    rows = ["image,caption"]
    for colour, rgb in COLOURS.items():
        for copy in range(copies):
            Image.new("RGB", (16, 16), tuple(max(0, value - 2 * copy) for value in rgb)).save(
                images / f"{colour}{copy}.png"
            )
            rows.append(f"{colour}{copy}.png,a {colour} thing {copy}")
    (folder / "captions.csv").write_text("\n".join(rows) + "\n")
    return folder


def recipe(pool: Path, **phase: Any) -> dict[str, Any]:
    """Pairs to a report on `unseen`; training is validated on `val`."""
    training = {
        "objectives": {"contrast": {"loss": {"objective": "info_nce", "multi_positive": True}}},
        "optimizer": {"lr": 1e-3}, "samples_seen": 96, "global_batch_size": 16, **phase,
    }  # fmt: skip
    scored = {"features": "embed", "pairs": "pairs", "split": "split", "splits": ["unseen"],
              "tasks": {"retrieval": {"task": "retrieval"}}}  # fmt: skip
    holdouts = {"unseen": {"by": "fraction", "fraction": 0.2}, "val": {"by": "fraction", "fraction": 0.3}}
    stages: dict[str, Any] = {
        "pairs": {"kind": "ingest", "pool": {"source": "folder", "images": str(pool / "images"),
                                             "captions": str(pool / "captions.csv")}},
        "split": {"kind": "split", "pairs": "pairs", "holdouts": holdouts},
        "curate": {"kind": "curate", "pairs": "pairs", "split": "split"},
        "init": {"kind": "model", "architecture": TOWERS},
        "pretrain": {"kind": "train", "init": "init", "pairs": "pairs", "selection": "curate",
                     "phases": {"p": training},
                     "validation": {"split": "split", "name": "val", "every_samples": 16, "pairs": 8},
                     "checkpoint_every_samples": 16},
        "embed": {"kind": "embed", "checkpoint": "pretrain", "pairs": "pairs", "split": "split", "splits": ["unseen"]},
        "evaluate": {"kind": "evaluate", "sets": {"small": scored}},
        "report": {"kind": "report", "title": "Small", "evaluations": {"pretrained": "evaluate"},
                   "headline": ["small", "unseen", "retrieval", "image_to_text_R@1"]},
    }  # fmt: skip
    said = {"name": "small", "title": "Small", "purpose": "Tests.", "hardware": "2 CPU cores", "expect": "It ends."}
    return {**said, "stages": stages}


def sweep(pool: Path, trials: int = 3, scheduler: dict[str, Any] | None = None, **phase: Any) -> dict[str, Any]:
    """A sweep over the learning rate, 0 lr included where a test wants a trial that cannot learn."""
    return {
        "recipe": recipe(pool, **phase), "space": {LR: {"log_uniform": [1e-5, 1e-2]}},
        "objective": {"stage": "pretrain"}, "trials": trials, **({"scheduler": scheduler} if scheduler else {}),
    }  # fmt: skip


def run_here(made: Recipe, place: Place) -> dict[str, str]:
    """Run a recipe's stages in this process; URIs by name."""
    uris: dict[str, str] = {}
    for name in made.order():
        spec = made.stages[name]
        parents = {role: uris[parent] for role, (parent, _) in spec.roles().items()}
        uris[name] = run_stage(name, spec, parents, place).uri
    return uris


def final_loss(checkpoint: str) -> float:
    """The last validation loss that a checkpoint's artifact tells."""
    lines = [json.loads(line) for line in Path(checkpoint, "metrics.jsonl").read_text().splitlines()]
    return float([line["validation_loss"] for line in lines if "validation_loss" in line][-1])
