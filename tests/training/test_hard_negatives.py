"""Hard negatives: the limit without any, a value by hand, and that wrong captions alone are pushed away."""

import math

import pytest
import torch

from training.objectives import Context, build_objective
from training.specs import HardNegatives, InfoNCE

CONTEXT = Context(0.0, 0, 1, torch.Generator())


def named(pairs: int = 5):
    random = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(3, pairs, 4, generator=random, dtype=torch.float64), dim=-1)
    names = dict(zip(("image_features", "text_features", "text_features.wrong"), rows, strict=True))
    return {name: value.requires_grad_() for name, value in names.items()} | {"logit_scale": torch.tensor(7.0).double()}


def test_wrong_captions_out_of_reach_leave_info_nce():
    names = named()
    far = names | {"text_features.wrong": torch.full((5, 4), -1e4).double() * names["image_features"].sign()[0].abs()}
    far["image_features"] = names["image_features"].detach().abs()
    loss = build_objective(HardNegatives(texts=("wrong",)))(far, CONTEXT).value
    assert float(loss) == pytest.approx(float(build_objective(InfoNCE())(far, CONTEXT).value), abs=1e-12)


def test_by_hand():
    unit = torch.eye(2, dtype=torch.float64)
    names = {
        "image_features": unit, "text_features": unit, "text_features.wrong": unit.flip(0),
        "logit_scale": torch.tensor(1.0).double(),
    }  # fmt: skip
    # each picture has its caption and the other's wrong one at 1, two texts at 0; each text its picture at 1, one at 0
    expected = (math.log((2 * math.e + 2) / math.e) + math.log((math.e + 1) / math.e)) / 2
    assert float(build_objective(HardNegatives(texts=("wrong",)))(names, CONTEXT).value) == pytest.approx(expected)


def test_only_pictures_move_from_wrong_captions():
    names = named()
    build_objective(HardNegatives(texts=("wrong",)))(names, CONTEXT).value.backward()
    pulls = names["text_features.wrong"].grad
    assert (pulls * names["image_features"]).sum() > 0  # descent moves wrong captions away from the pictures
    parts = build_objective(HardNegatives(texts=("wrong",)))(names, CONTEXT).parts
    plain = build_objective(InfoNCE())(names, CONTEXT).parts
    assert float(parts["t2i"]) == pytest.approx(float(plain["t2i"]))
    assert float(parts["i2t"]) > float(plain["i2t"])
