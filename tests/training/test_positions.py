"""Stretched text positions: the table by hand, short texts to the bit, the way to disk, and who is refused."""

import open_clip
import pytest
import torch

from data.errors import ModelError
from training import surgeries
from training.sizes import count
from training.specs import SetLogitScale, StretchPositions, Upcycle
from training.surgeries import positions
from training.towers import create_towers, load_towers, save_towers

CLIP_L, CLIP_KEEP, CLIP_FACTOR = 77, 20, 4


def longer(world, context=8, **changes):
    """The tiny config with another text tower."""
    return {**world.TINY, "text_cfg": {**world.TINY["text_cfg"], "context_length": context, **changes}}


def texts(length, tokens, rows=5):
    """Rows of so many tokens with the last one the end, then padding."""
    random = torch.Generator().manual_seed(3)
    text = torch.zeros(rows, length, dtype=torch.int64)
    text[:, :tokens] = torch.randint(1, 1000, (rows, tokens), generator=random)
    text[:, tokens - 1] = 49407
    return text


def apply(spec, towers):
    return surgeries.apply(spec, towers, {"init": towers.model.state_dict()})


# ------------------------------------------------------------------------------------------------------- the table


def test_a_small_table_by_hand():
    old = torch.tensor([[0.0], [10.0], [20.0], [40.0]])
    # kept: 0, 10; then old places 2, 2.5, 3, and 3.5, where the last difference, 20, goes on
    assert positions.stretched(old, keep=2, factor=2).flatten().tolist() == [0, 10, 20, 30, 40, 50]


def test_clips_table_becomes_248_rows_as_the_paper_says():
    old = torch.randn(CLIP_L, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    new = positions.stretched(old, CLIP_KEEP, CLIP_FACTOR)
    expected = [*old[:CLIP_KEEP]]
    for n in range(CLIP_KEEP, 245):
        below, quarters = divmod(n - CLIP_KEEP, 4)
        place = CLIP_KEEP + below
        expected.append(old[place] + quarters / 4 * (old[min(place + 1, 76)] - old[place]))
    expected += [old[76] + k / 4 * (old[76] - old[75]) for k in (1, 2, 3)]
    assert new.shape == (248, 3)
    torch.testing.assert_close(new, torch.stack(expected), atol=1e-12, rtol=0)
    assert torch.equal(new[:CLIP_KEEP], old[:CLIP_KEEP])


def test_old_rows_are_found_again_in_the_new_table():
    old = torch.randn(12, 5)
    assert torch.equal(positions.stretched(old, 3, 4)[3::4], old[3:])


def test_nothing_kept_is_the_naive_interpolation_of_all_rows():
    assert positions.stretched(torch.tensor([[0.0], [4.0], [6.0]]), 0, 2).flatten().tolist() == [0, 2, 4, 5, 6, 7]


# ------------------------------------------------------------------------------------------------------- the model


@pytest.mark.parametrize("custom_text", [False, True])
def test_short_texts_keep_their_features_to_the_bit(world, custom_text):
    old = create_towers({**longer(world, 16), "custom_text": custom_text}).eval()
    new, checks = apply(StretchPositions(keep=8, factor=3), old)
    assert [(check.name, check.value, check.limit) for check in checks] == [("short texts unchanged", 0.0, 0.0)]
    assert len(new.text_tower.positional_embedding) == 3 * 16 - 2 * 8
    with torch.no_grad():
        for tokens in range(2, 9):
            first, second = (towers.encode_text(towers.trimmed(texts(16, tokens))) for towers in (old, new))
            assert torch.equal(first, second)
        lengthy = texts(16, 12)
        assert (old.encode_text(lengthy) - new.encode_text(lengthy)).abs().max() > 1e-4


def test_without_kept_positions_short_texts_change_and_nothing_is_promised(world):
    old = create_towers(longer(world, 16)).eval()
    new, checks = apply(StretchPositions(keep=0, factor=3), old)
    assert not checks
    with torch.no_grad():
        assert (old.encode_text(texts(16, 5)) - new.encode_text(texts(16, 5))).abs().max() > 1e-4


def test_a_tower_that_changed_more_than_positions_fails_the_check(world, monkeypatch):
    honest = positions._with_positions

    def broken(towers, position):
        made = honest(towers, position)
        made.text_tower.attn_mask = torch.zeros_like(made.text_tower.attn_mask)  # no longer causal
        return made

    monkeypatch.setattr(positions, "_with_positions", broken)
    _, checks = apply(StretchPositions(keep=8, factor=3), create_towers(longer(world, 16)))
    assert not checks[0].holds


def test_the_start_is_left_as_it_was(world):
    old = create_towers(longer(world, 16))
    before = {name: value.clone() for name, value in old.model.state_dict().items()}
    apply(StretchPositions(keep=8), old)
    assert old.config["model_cfg"]["text_cfg"]["context_length"] == 16
    assert all(torch.equal(before[name], value) for name, value in old.model.state_dict().items())


@pytest.mark.parametrize("custom_text", [False, True])
def test_the_result_loads_in_plain_open_clip_with_a_longer_tokenizer(world, tmp_path, custom_text):
    old = create_towers({**longer(world, 16), "custom_text": custom_text})
    new, _ = apply(StretchPositions(keep=4, factor=4), old)
    save_towers(new, str(tmp_path))
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    caption = "a small red square above a large green bar on the left of one more thing in the picture"
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path}")([caption])
    assert tokens.shape == (1, 52) == new.tokenizer([caption]).shape
    assert int((tokens > 0).sum()) > 16
    with torch.no_grad():
        expected = new.eval().encode_text(new.trimmed(tokens))
        torch.testing.assert_close(model.eval().encode_text(tokens, normalize=True), expected, atol=1e-6, rtol=0)
        assert torch.equal(load_towers(str(tmp_path)).encode_text(new.trimmed(tokens)), expected)


def test_its_planned_size_is_its_real_one(world):
    config = longer(world, 16)
    spec = StretchPositions(keep=8, factor=3)
    towers, _ = apply(spec, create_towers(config))
    assert spec.sizes(count(config)) == count(towers.config["model_cfg"])
    assert spec.sizes(count(config)).parameters == towers.parameter_count()


def test_a_mixture_is_stretched_too_to_rounding(world):
    towers = create_towers(longer(world, 16))
    mixed, _ = apply(Upcycle(experts=("init", "init"), top_k=1), towers)
    new, checks = apply(StretchPositions(keep=8), mixed)
    assert new.layout == mixed.layout
    assert checks[0].holds and checks[0].limit > 0  # the router's outputs are of all columns, so none is cut


# -------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"no_causal_mask": True, "pool_type": "last"}, "is not causal"),  # as SigLIP's
        ({"pool_type": "last"}, "does not read at the end-of-text token"),
        ({"embed_cls": True}, "reads at a class token behind the last position"),  # as CoCa's
    ],
)
def test_towers_whose_short_texts_would_change_are_refused(world, changes, reason):
    towers = create_towers({**longer(world, 16, **changes), "custom_text": True})
    with pytest.raises(ModelError, match=reason) as caught:
        apply(StretchPositions(keep=8), towers)
    assert "\n" not in str(caught.value)


def test_a_text_tower_without_learned_positions_is_refused(world):
    towers = create_towers({**longer(world, 16), "custom_text": True})
    towers.model.text = SimpleTower()
    with pytest.raises(ModelError, match="SimpleTower has no table of learned positions"):
        apply(StretchPositions(keep=8), towers)


class SimpleTower(torch.nn.Module):
    """Stands for another library's text tower, which holds its positions elsewhere."""


@pytest.mark.parametrize("keep", [16, 20])
def test_keep_that_leaves_nothing_to_stretch_is_refused(world, keep):
    with pytest.raises(ModelError, match=f"keep {keep} leaves none of the 16 text positions"):
        apply(StretchPositions(keep=keep), create_towers(longer(world, 16)))


# ----------------------------------------------------------------------------------------------------- temperature


def test_the_temperature_starts_again_and_nothing_else_changes(world):
    old = create_towers(world.TINY)
    new, checks = apply(SetLogitScale(value=100.0), old)
    assert all(check.holds for check in checks)
    assert float(new.model.logit_scale.exp()) == pytest.approx(100.0, rel=1e-6)
    assert new.model.logit_scale.requires_grad
    names = old.model.state_dict().keys() - {"logit_scale"}
    assert all(torch.equal(old.model.state_dict()[name], new.model.state_dict()[name]) for name in names)
    assert float(old.model.logit_scale.exp()) == pytest.approx(1 / 0.07, rel=1e-5)


def test_a_negative_temperature_is_refused():
    with pytest.raises(ValueError, match="greater than 0"):
        SetLogitScale(value=-1.0)
