"""Similarity rows: plain distillation and Mod-X's form, against its formula, in its limits and on ranks."""

import math
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from training import specs
from training.objectives import Context, build_objective, tiles

ranks = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("ranks.py"))))
MOD_X = {"rows": "correct", "use_scale": False, "reduction": "sum"}
LEARNT = ("image_features", "text_features")


def context(rank=0, world_size=1):
    return Context(0.0, rank, world_size, torch.Generator())


def unit(rows, seed, width=6):
    return F.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)).double(), dim=1)


def names(student=0, teacher=2):
    """Features of which the teacher ranks some rows right and some wrong, in each direction."""
    texts = unit(8, teacher + 1)
    images = F.normalize(texts + 0.5 * unit(8, teacher), dim=1)
    images = torch.cat([images[:4], images[[5, 4, 7, 6]]])
    named = {"image_features": unit(8, student), "text_features": unit(8, student + 1)}
    named = {key: value.requires_grad_() for key, value in named.items()}
    scales = {"logit_scale": torch.tensor(10.0).double(), "old.logit_scale": torch.tensor(20.0).double()}
    return {**named, **scales, "old.image_features": images, "old.text_features": texts}


def rows(**options):
    return build_objective(specs.SimilarityRows(teacher="old", **options))


def mod_x_formula(named):
    """Section 16: wrong rows of A_old replaced by A's, not detached; KL summed over rows, both directions, halved."""
    student = named["image_features"] @ named["text_features"].T
    teacher = named["old.image_features"] @ named["old.text_features"].T
    total = 0
    for new, old in ((student, teacher), (student.T, teacher.T)):
        aligned = torch.stack([old[i] if int(old[i].argmax()) == i else new[i] for i in range(len(new))])
        p, q = aligned.softmax(dim=1), new.softmax(dim=1)
        total = total + (p * (p.log() - q.log())).sum()
    return total / 2


def gradients(value, named):
    return torch.cat([grad.flatten() for grad in torch.autograd.grad(value, [named[key] for key in LEARNT])])


def test_mod_xs_form_is_its_formula_and_the_teacher_is_right_and_wrong_in_it():
    named = names()
    teacher = named["old.image_features"] @ named["old.text_features"].T
    right = [int((sims.argmax(dim=1) == torch.arange(8)).sum()) for sims in (teacher, teacher.T)]
    assert all(0 < count < 8 for count in right)
    value, expected = rows(**MOD_X)(named, context()).value, mod_x_formula(named)
    assert torch.allclose(value, expected, atol=1e-6, rtol=0)
    assert torch.allclose(gradients(value, named), gradients(expected, named), atol=1e-6, rtol=0)


def test_rows_in_slices_are_the_same_rows(monkeypatch):
    named = names()
    whole = rows(**MOD_X)(named, context()).value
    monkeypatch.setitem(tiles.EDGES, "cpu", 4)
    sliced = rows(**MOD_X)(named, context()).value
    assert torch.allclose(sliced, whole, atol=1e-12)
    assert torch.allclose(gradients(sliced, named), gradients(whole, named), atol=1e-12)


def test_a_replaced_row_adds_neither_value_nor_gradient():
    named = names()
    named["old.text_features"] = F.normalize(torch.eye(8, 8).double() + 0.1, dim=1)
    named["old.image_features"] = named["old.text_features"].roll(1, dims=0)  # every own column is beaten
    value = rows(**MOD_X)(named, context()).value
    assert float(value.detach()) == 0
    assert not gradients(value, named).any()
    assert float(rows(use_scale=False, reduction="sum")(named, context()).value.detach()) > 1e-3


@pytest.mark.parametrize("options", [{}, MOD_X, {"drop_diagonal": True}, {"temperature": 3.0}])
def test_a_student_equal_to_its_teacher_learns_nothing(options):
    named = names()
    named |= {key: named[f"old.{key}"].clone().requires_grad_() for key in (*LEARNT, "logit_scale")}
    value = rows(**options)(named, context()).value
    assert abs(float(value.detach())) < 1e-9
    assert gradients(value, named).abs().max() < 1e-9


def test_all_rows_are_those_that_count_when_the_teacher_is_right():
    named = names()
    named["old.image_features"] = named["old.text_features"]
    plain, correct = (rows(rows=which)(named, context()).value for which in ("all", "correct"))
    assert torch.allclose(plain, correct, atol=1e-12)


def test_the_directions_judge_their_own_rows():
    """Of the first row another column is the best; of the first column its own row is."""
    eye = torch.eye(3).double()
    named = {
        **names(),
        "old.image_features": F.normalize(eye + torch.tensor([[0, 2.0, 0], [0, 3, 0], [0, 0, 0]]), dim=1),
    }
    named |= {"old.text_features": eye, "image_features": unit(3, 0, 3), "text_features": unit(3, 1, 3)}
    teacher = named["old.image_features"] @ eye
    assert teacher.argmax(dim=1).tolist() == [1, 1, 2]
    assert teacher.argmax(dim=0).tolist() == [0, 1, 2]
    parts = rows(**MOD_X)(named, context()).parts
    student = named["image_features"] @ named["text_features"].T
    for name, (new, old), right in (("i2t", (student, teacher), [1, 2]), ("t2i", (student.T, teacher.T), [0, 1, 2])):
        kl = F.kl_div(new.log_softmax(1), old.softmax(1), reduction="none").sum(1)
        assert float(parts[name].detach()) == pytest.approx(float(kl[right].sum().detach()), abs=1e-9)


@pytest.mark.parametrize(("below", "is_kept"), [(0.0, True), (1e-3, False)])
def test_a_tie_is_no_mistake_and_less_is_one(below, is_kept):
    """The first caption occurs twice; where the first picture's own copy lies a little lower, its row is wrong."""
    texts = torch.eye(3, 4).double()[[0, 0, 1]]
    texts[0, 0] -= below
    named = {**names(), "old.image_features": torch.eye(3, 4).double()[[0, 0, 1]], "old.text_features": texts}
    named |= {"image_features": unit(3, 0, 4), "text_features": unit(3, 1, 4)}
    student = named["image_features"] @ named["text_features"].T
    teacher = named["old.image_features"] @ texts.T
    counted = F.kl_div(student.log_softmax(1), teacher.softmax(1), reduction="none").sum(1)[0 if is_kept else 1 :]
    assert float(rows(**MOD_X)(named, context()).parts["i2t"]) == pytest.approx(float(counted.sum()), abs=1e-9)


def test_drop_diagonal_leaves_the_own_column_out_of_both_softmaxes():
    named = names()
    value = rows(drop_diagonal=True, temperature=2.0)(named, context()).value
    total = 0
    for mine, theirs in (LEARNT, LEARNT[::-1]):
        new = 10 / 2 * named[mine] @ named[theirs].T
        old = 20 / 2 * named[f"old.{mine}"] @ named[f"old.{theirs}"].T
        for i in range(8):
            others = [j for j in range(8) if j != i]
            p = old[i, others].softmax(0)
            total = total + 4 * (p * (p.log() - new[i, others].log_softmax(0))).sum() / 8 / 2
    assert torch.allclose(value, total, atol=1e-6, rtol=0)
    assert torch.allclose(gradients(value, named), gradients(total, named), atol=1e-6, rtol=0)


def test_a_kept_diagonal_is_another_loss():
    assert not torch.allclose(*(rows(drop_diagonal=drop)(names(), context()).value for drop in (False, True)))


def test_without_scale_the_temperatures_of_both_models_do_not_matter():
    named = names()
    other = {**named, "logit_scale": torch.tensor(55.0).double(), "old.logit_scale": torch.tensor(3.0).double()}
    one, same = (rows(**MOD_X)(value, context()).value for value in (named, other))
    assert torch.equal(one, same)
    assert not torch.allclose(*(rows()(value, context()).value for value in (named, other)), atol=1e-3)


def test_a_sum_is_the_mean_times_the_rows():
    whole, mean = (rows(reduction=how)(names(), context()).value for how in ("sum", "mean"))
    assert torch.allclose(whole, 8 * mean, atol=1e-12)


def rotation(angle):
    turned = torch.eye(6).double()
    cos, sin = math.cos(angle), math.sin(angle)
    turned[:2, :2] = torch.tensor([[cos, -sin], [sin, cos]])
    return turned


def test_a_common_rotation_is_not_seen_and_unequal_ones_are():
    """The paper's point: modalities that turn together keep their similarities, those that turn apart do not."""
    named = {key: value.detach() for key, value in names().items()}
    same = {key: named[f"old.{key}"] for key in LEARNT}
    turned = {key: value @ rotation(0.7) for key, value in same.items()}
    apart = {"image_features": same["image_features"] @ rotation(0.7), "text_features": same["text_features"]}
    values = [float(rows(**MOD_X)({**named, **both}, context()).value) for both in (same, turned, apart)]
    assert values[0] == pytest.approx(0, abs=1e-9)
    assert values[1] == pytest.approx(0, abs=1e-9)
    assert values[2] > 1e-2


def test_row_order_does_not_matter():
    named, order = names(), torch.tensor([3, 1, 5, 0, 2, 4, 7, 6])
    moved = {key: value[order] if value.ndim else value for key, value in named.items()}
    assert torch.allclose(*(rows(**MOD_X)(value, context()).value for value in (named, moved)), atol=1e-12)


def on_ranks(rank, world_size, folder):
    whole = {key: value.detach() for key, value in names().items()}
    mine = slice(rank * 8 // world_size, (rank + 1) * 8 // world_size)
    for label, options in RANKED.items():
        named = {key: value[mine].clone() if value.ndim else value for key, value in whole.items()}
        named |= {key: named[key].requires_grad_() for key in LEARNT}
        value = rows(**options)(named, context(rank, world_size)).value
        value.backward()
        torch.save((value.detach(), [named[key].grad for key in LEARNT]), folder / f"{label}-{rank}.pt")


RANKED = {"mod_x": MOD_X, "mean": {"rows": "correct"}, "dropped": {"drop_diagonal": True}}


@pytest.mark.parametrize("label", RANKED)
def test_two_ranks_have_the_value_and_gradients_of_one(label, tmp_path):
    ranks.together(on_ranks, 2, tmp_path / "store", tmp_path)
    parts = [torch.load(tmp_path / f"{label}-{rank}.pt") for rank in range(2)]
    named = names()
    value = rows(**RANKED[label])(named, context()).value
    assert torch.allclose((parts[0][0] + parts[1][0]) / 2, value, atol=1e-9)
    whole = torch.cat([torch.cat([part[1][side] for part in parts]).flatten() for side in range(2)]) / 2
    assert torch.allclose(whole, gradients(value, named), atol=1e-9)
