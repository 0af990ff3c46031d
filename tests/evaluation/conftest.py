"""A small world of artifacts written by hand: pictures of concepts by several vendors, and models of a chosen skill."""

import importlib.util
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageDraw

from data import storage
from data.artifacts import Artifact, Output, Record, find_fingerprint, fingerprint
from data.features import write_features
from data.place import Place
from data.selection import ENTRY_SCHEMA, SELECTION_SCHEMA, write_entries, write_selection, write_split
from data.shards import CAPTION_SCHEMA, Pair, write_manifest, write_parquet, write_shard
from data.stage import StageSpec, run_stage
from evaluation.specs import Bootstrap, EvaluateSpec, Retrieval, Scored, ZeroShot
from training.specs import Prompts

COLOURS = ("red", "green", "blue", "orange", "purple", "teal", "gold", "pink", "brown", "navy")
SHAPES = ("circle", "square", "triangle", "cross")
VENDORS = ("Appl", "Goog", "Twtr")
TEMPLATES = ("{c}", "a picture of a {c}")
HELD_OUT = ("unseen_vendor", "unseen_concepts")


def drawn(colour: str, shape: str, size: int) -> bytes:
    """A PNG of one coloured shape."""
    image = Image.new("RGBA", (72, 72), (0, 0, 0, 0))
    draw, box = ImageDraw.Draw(image), (size, size, 71 - size, 71 - size)
    if shape == "circle":
        draw.ellipse(box, fill=colour)
    elif shape == "square":
        draw.rectangle(box, fill=colour)
    elif shape == "triangle":
        draw.polygon([(36, size), (71 - size, 71 - size), (size, 71 - size)], fill=colour)
    else:
        draw.line(box, fill=colour, width=9)
        draw.line((box[0], box[3], box[2], box[1]), fill=colour, width=9)
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return sink.getvalue()


def drawn_pairs() -> list[Pair]:
    """Forty concepts by three vendors; group is the shape, base the colour and shape."""
    return [
        Pair(
            f"{vendor.lower()}-{colour}_{shape}", drawn(colour, shape, 8 + 4 * number), "png",
            {"alt": f"{colour} {shape}"}, {"vendor": vendor, "base": f"{colour}-{shape}", "group": shape},
        )
        for number, vendor in enumerate(VENDORS) for shape in SHAPES for colour in COLOURS
    ]  # fmt: skip


class World:
    """Artifacts below one root. Vendor `Twtr` is held out as `unseen_vendor`, every fifth base as `unseen_concepts`."""

    def __init__(self, root: Path, pairs: Sequence[Pair], dim: int = 32) -> None:
        self.root, self.place = str(root), Place(root=str(root))
        self.pairs, self.dim = list(pairs), dim
        bases = sorted({pair.meta["base"] for pair in pairs})
        random = np.random.default_rng(5)
        self.direction = {base: random.normal(size=dim) for base in bases}
        held = set(bases[::5])
        self.split_of = {
            p.uid: "unseen_vendor"
            if p.meta["vendor"] == "Twtr"
            else "unseen_concepts"
            if p.meta["base"] in held
            else "train"
            for p in pairs
        }
        card = {"vendors": {name: {"licence": f"<{name}> licence", "may_be_shown": name != "Appl"} for name in VENDORS}}
        self.shard_set = self.put(
            "emoji", "shard_set", "ingest", {}, self._write_shards, {"pairs": len(pairs)}, {"data_card": card}
        )  # fmt: skip
        table = pa.table({"uid": list(self.split_of), "split": list(self.split_of.values())})
        self.split = self.put(
            "split",
            "split",
            "split",
            {"pairs": self.shard_set},
            lambda uri: write_split(uri, table),
            {"pairs": len(pairs)},
        )

    def put(
        self, name: str, kind: str, stage: str, parents: dict[str, Artifact], write: Callable[[str], object],
        counts: dict[str, int] | None = None, metrics: dict[str, Any] | None = None,
        config: dict[str, Any] | None = None,
    ) -> Artifact:  # fmt: skip
        """Commit an artifact that `write` fills."""
        prints = {role: parent.fingerprint for role, parent in parents.items()}
        config = {"name": name, **(config or {})}
        print_ = fingerprint(stage, 1, config, prints)
        found = find_fingerprint(self.root, print_)
        if found:
            return found
        out = Output(self.root, name, print_)
        with out.lock():
            write(out.uri)
            record = Record(
                kind=kind, stage=stage, revision=1, fingerprint=print_, config=config, parents=prints,
                counts=counts or {}, metrics=metrics or {},
            )  # fmt: skip
            return out.commit(record)

    def uids(self, split: str) -> list[str]:
        return sorted(uid for uid, name in self.split_of.items() if name == split)

    def select(self, kept: Sequence[str] | None = None, split: Artifact | None = None, **metrics: Any) -> Artifact:
        """A selection of the train split that keeps `kept` (default: two of three pairs)."""
        train = self.uids("train") if kept is None else sorted({*self.uids("train"), *kept})
        chosen = {uid for number, uid in enumerate(train) if number % 3} if kept is None else set(kept)
        rows = [
            {"uid": uid, "kept": uid in chosen, "p_keep": 1.0 if uid in chosen else 0.25, "draw": 0.5,
             "reason": "" if uid in chosen else "drawn_out"} for uid in train
        ]  # fmt: skip
        entries = pa.Table.from_pylist(
            [{"id": 0, "entry": "red", "source": "file", "language": "en", "count": 9, "kept": 4, "p": 0.5}],
            ENTRY_SCHEMA,
        )
        table = pa.Table.from_pylist(rows, SELECTION_SCHEMA)
        counts = {"pairs": len(train), "kept": len(chosen), "dropped_drawn_out": len(train) - len(chosen)}
        parents = {"pairs": self.shard_set, "split": split or self.split}
        name = f"curate{len(chosen)}"

        def write(uri: str) -> None:
            write_selection(uri, table)
            write_entries(uri, entries)

        return self.put(name, "selection", "curate", parents, write, counts, metrics)

    def checkpoint(
        self, name: str, selection: Artifact, lines: Sequence[dict[str, Any]] = (), teacher: Artifact | None = None,
        config: dict[str, Any] | None = None,
    ) -> Artifact:  # fmt: skip
        """A checkpoint with a training log and no weights."""
        text = "".join(json.dumps(line) + "\n" for line in lines).encode()
        parents = {"pairs": self.shard_set, "selection": selection, **({"teachers.t": teacher} if teacher else {})}
        write = lambda uri: storage.write_bytes(f"{uri}/metrics.jsonl", text)  # noqa: E731
        return self.put(
            name,
            "checkpoint",
            "train",
            parents,
            write,
            {"samples_seen": 512, "parameters": 7_654_321},
            {"checks": {"router/equal experts": 1e-6}},
            config,
        )

    def embed(
        self, name: str, checkpoint: Artifact, skill: float = 1.0, queries: Sequence[str] = (), constant: bool = False,
        splits: Sequence[str] = HELD_OUT, change: Callable[..., None] | None = None, fields: Sequence[str] = ("group",),
        views: Mapping[str, float] | None = None, view_specs: Mapping[str, Any] | None = None, logit_scale: float = 20,
        **more: Any,
    ) -> Artifact:  # fmt: skip
        """Features of a model whose pictures lie near their concept: `skill` 0 is noise, large is perfect.

        `fields`: metadata fields whose values are put into `TEMPLATES` and embedded as the mean of their concepts.
        `views`: name of a view -> its share of the skill; `view_specs` go into the record as `EmbedSpec.views` would.
        `more`: what else `write_features` takes.
        """
        random = np.random.default_rng(len(name))
        shown = [pair for pair in self.pairs if self.split_of[pair.uid] in splits]
        concepts_ND = np.stack([self.direction[pair.meta["base"]] for pair in shown])
        images_ND = skill * concepts_ND + random.normal(size=concepts_ND.shape)
        texts = self._texts(shown, fields)
        for query in queries:
            texts.setdefault(query, random.normal(size=self.dim))
        texts_MD = np.stack(list(texts.values()))
        if constant:
            images_ND[:], texts_MD[:] = 1.0, 1.0
        if views:
            more["views"] = {
                view: _unit(share * skill * concepts_ND + random.normal(size=concepts_ND.shape))
                for view, share in views.items()
            }

        def write(uri: str) -> None:
            write_features(uri, [p.uid for p in shown], _unit(images_ND), list(texts), _unit(texts_MD), **more)
            if change:
                change(uri)

        parents = {"checkpoint": checkpoint, "pairs": self.shard_set, "split": self.split}
        counts = {"images": len(shown), "texts": len(texts)}
        config = {"views": dict(view_specs)} if view_specs else {}
        return self.put(
            name, "feature_set", "embed", parents, write, counts, {"logit_scale": logit_scale}, config
        )  # fmt: skip

    def _texts(self, shown: Sequence[Pair], fields: Sequence[str]) -> dict[str, np.ndarray]:
        """Captions lie at their concept, classes at the mean of their concepts."""
        texts = {pair.captions["alt"]: self.direction[pair.meta["base"]] for pair in self.pairs if pair.captions}
        asked = {text for pair in shown for text in pair.captions.values()}
        random = np.random.default_rng(3)
        texts = {text: texts.get(text, random.normal(size=self.dim)) for text in sorted(asked)}
        for field in fields:
            for value in sorted({str(pair.meta[field]) for pair in self.pairs if field in pair.meta}):
                bases = [pair.meta["base"] for pair in self.pairs if str(pair.meta.get(field)) == value]
                mean_D = np.mean([self.direction[base] for base in bases], axis=0)
                texts |= {template.replace("{c}", value): mean_D for template in TEMPLATES}
        return texts

    def evaluate_spec(self, views: bool = False, **changes: Any) -> EvaluateSpec:
        """One set, `emoji`, of both held-out splits; `changes` are fields of its `Scored`, and `bootstrap`."""
        bootstrap = changes.pop("bootstrap", Bootstrap(resamples=200))
        fields: dict[str, Any] = {
            "features": "embed", "pairs": "emoji", "split": "split", "splits": HELD_OUT, "cluster_field": "base",
            "views": "views" if views else None,
            "tasks": {
                "groups": ZeroShot(prompts=Prompts(field="group", templates=TEMPLATES)),
                "captions": Retrieval(ks=(1, 5)),
            },
        }  # fmt: skip
        return EvaluateSpec(sets={"emoji": Scored(**(fields | changes))}, bootstrap=bootstrap)

    def evaluate(
        self, name: str, features: Artifact, split: Artifact | None = None, views: Artifact | None = None,
        **changes: Any,
    ) -> Artifact:  # fmt: skip
        """Run the evaluate stage on these features."""
        parents = {"features": features, "pairs": self.shard_set, "split": split or self.split}
        if views:
            parents["views"] = views
        return self.run(
            name, self.evaluate_spec(views=bool(views), **changes),
            **{f"sets.emoji.{role}": parent for role, parent in parents.items()},
        )  # fmt: skip

    def run(self, name: str, spec: StageSpec, **parents: Artifact) -> Artifact:
        """Run a real stage."""
        return run_stage(name, spec, {role: parent.uri for role, parent in parents.items()}, self.place)

    def rewrite(self, selection: Artifact, attempts: Sequence[dict[str, Any]]) -> Artifact:
        """A caption layer with these attempts (caption, rewrite, accepted, reason)."""
        used = [
            {"uid": pair.uid, "source": "rewrite", "caption": attempt["rewrite"], "provenance": "{}"}
            for attempt in attempts for pair in self.pairs
            if attempt["accepted"] and pair.captions["alt"] == attempt["caption"]
        ]  # fmt: skip

        def write(uri: str) -> None:
            write_parquet(f"{uri}/captions/0.parquet", pa.Table.from_pylist(used, CAPTION_SCHEMA))
            write_parquet(f"{uri}/rewrites.parquet", pa.Table.from_pylist(list(attempts)))

        parents = {"pairs": self.shard_set, "selection": selection}
        return self.put("rewrite", "caption_layer", "rewrite", parents, write, {"attempts": len(attempts)})

    def _write_shards(self, uri: str) -> None:
        half = len(self.pairs) // 2
        shards = [write_shard(uri, "0", self.pairs[:half]), write_shard(uri, "1", self.pairs[half:])]
        write_manifest(uri, shards, [])


def _unit(rows: np.ndarray) -> np.ndarray:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Drawn pictures."""
    return World(tmp_path / "runs", drawn_pairs())


@pytest.fixture
def make_world(tmp_path: Path) -> Callable[[Sequence[Pair]], World]:
    """A world of other pairs."""
    return lambda pairs: World(tmp_path / "other", pairs)


@pytest.fixture(scope="session")
def made() -> ModuleType:
    """made.py lies beside this file; tests are no package."""
    spec = importlib.util.spec_from_file_location(
        "clipworks_tests_evaluation_made", Path(__file__).with_name("made.py")
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def world_at() -> Callable[..., World]:
    """(root, pairs) -> a world there, of drawn pictures unless told; for fixtures that outlive a test."""
    return lambda root, pairs=None: World(root, pairs or drawn_pairs())
