"""Typed words to pictures, with a stub in place of the text tower."""

import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.artifacts import ArtifactError
from data.errors import EvaluationError, ModelError
from evaluation.contact_sheet import Found, _font, _wrapped, draw_sheet
from evaluation.search import search


@pytest.fixture
def model(world, monkeypatch):
    """A checkpoint with two feature sets (held out, train) and a text tower that knows the concepts by name."""
    checkpoint = world.checkpoint("distil", world.select())
    world.embed("embed-held", checkpoint, skill=50)
    world.embed("embed-train", checkpoint, skill=50, splits=("train", "unseen_vendor"))
    world.embed("embed-else", world.checkpoint("pretrain", world.select()), skill=50)

    class Towers:
        width = world.dim

        def encode_texts(self, texts):
            rows = [world.direction["-".join(text.split())][: self.width] for text in texts]
            return np.stack([row / np.linalg.norm(row) for row in rows]).astype(np.float32)

    stub = types.ModuleType("training.towers")
    stub.load_towers = lambda uri: Towers()
    stub.Towers = Towers
    monkeypatch.setitem(sys.modules, "training.towers", stub)
    return checkpoint


def test_finds_the_right_pictures_over_all_feature_sets(world, model, tmp_path):
    found = search(model.uri, "red circle", top=5, sheet=tmp_path / "red.png")
    assert {hit.uid for hit in found[:3]} == {"appl-red_circle", "goog-red_circle", "twtr-red_circle"}
    assert [hit.caption for hit in found[:3]] == ["red circle"] * 3
    assert len(found) == len({hit.uid for hit in found}) == 5
    similarities = [hit.similarity for hit in found]
    assert similarities == sorted(similarities, reverse=True)
    assert similarities[2] > 0.95 > similarities[3]


def test_the_contact_sheet_shows_what_was_found(model, tmp_path):
    sheet = tmp_path / "new" / "red.png"
    search(model.uri, "red square", top=6, sheet=sheet)
    with Image.open(sheet) as image:
        assert image.format == "PNG"
        colours = {colour for _, colour in image.getcolors(1 << 20)}
    assert (255, 0, 0) in colours
    assert list(sheet.parent.iterdir()) == [sheet]


def test_no_sheet_is_written_unless_asked_for(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = set(Path(tmp_path).iterdir())
    search(model.uri, "red circle")
    assert set(Path(tmp_path).iterdir()) == before


def test_a_checkpoint_answers_to_its_stage_name(world, model):
    assert search(f"{world.root}/distil", "red circle") == search(model.uri, "red circle")
    with pytest.raises(EvaluationError, match="no such checkpoint; did you mean 'distil"):
        search(f"{world.root}/distill", "red circle")


def test_ambiguous_and_missing_things_are_said(world, model):
    world.checkpoint("distil", world.select(), config={"seed": 1})
    with pytest.raises(EvaluationError, match="2 artifacts answer to this"):
        search(f"{world.root}/distil", "red circle")
    lonely = world.checkpoint("lonely", world.select())
    with pytest.raises(EvaluationError, match="no feature set was made with lonely-"):
        search(lonely.uri, "red circle")
    with pytest.raises(EvaluationError, match="blank"):
        search(model.uri, "  ")
    with pytest.raises(EvaluationError, match="top: 0"):
        search(model.uri, "red circle", top=0)
    with pytest.raises(ArtifactError, match="where a checkpoint is needed"):
        search(world.shard_set.uri, "red circle")
    with pytest.raises(ArtifactError):
        search(f"{world.root}/none/of/this", "red circle")


def test_features_of_another_width_are_refused(model):
    sys.modules["training.towers"].Towers.width = 8
    with pytest.raises(ModelError, match="the text tower gives 8"):
        search(model.uri, "red circle")


def test_long_captions_are_cut_and_empty_grids_are_drawn():
    font = _font(14)
    lines = _wrapped("a very long caption " * 20 + "x" * 300, font, 168, 2)
    assert len(lines) == 2
    assert lines[1].endswith("…")
    assert all(font.getlength(line) <= 168 for line in lines)
    assert all(font.getlength(line) <= 168 for line in _wrapped("x" * 300, font, 168, 2))
    assert draw_sheet("nothing", [], {}).size > (100, 100)
    assert draw_sheet("one", [Found("uid", 0.1, "")], {}).size > (100, 100)
