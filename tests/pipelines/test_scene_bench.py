"""The bench of composed scenes: its stages fit each other, and what its tasks ask is there to be asked."""

import pytest

from data.pools import scenes
from data.pools.scene_words import NOUNS
from data.spec import references
from evaluation.specs import CaptionSelection, Retrieval
from pipelines.recipe import Recipe
from pipelines.recipes import _scenes as bench


def recipe(pairs):
    stages = {
        "pairs": pairs, "split": bench.split(), "select": bench.select(), "towers": bench.model(), "base": bench.base(),
        "features": bench.embed("base"), "evaluate": bench.evaluate("features"),
    }  # fmt: skip
    about = {"name": "bench", "title": "bench", "purpose": "test", "hardware": "test", "minutes": 1, "expect": "test"}
    return Recipe(**about, stages=stages)


@pytest.fixture(scope="module", params=["pairs", "long_pairs"])
def found(request):
    pool = getattr(bench, request.param)(200).pool
    return [pair.make(pair.uid) for pair in scenes.plan(pool).pairs]


@pytest.mark.parametrize("pairs", [bench.pairs(), bench.long_pairs()])
def test_its_stages_are_a_recipe(pairs):
    stages = recipe(pairs).stages
    assert {stage for spec in stages.values() for _, stage, _ in references(spec)} < set(stages)


def test_what_tasks_ask_for_is_said_of_enough_pairs(found):
    for task in bench.TASKS.values():
        sources = task.caption_sources if isinstance(task, Retrieval) else ()
        if isinstance(task, CaptionSelection):
            sources = (task.right, *task.wrong)
        for source in sources:
            assert sum(source in pair.captions for pair in found) > 40, source


def test_classes_are_the_nouns_and_their_held_out_names(found):
    classes = bench.HELDOUT.classes
    assert {pair.meta["main"] for pair in found} == set(list(NOUNS)[: len(classes)])
    assert all(NOUNS[pair.meta["main"]].heldout == classes[pair.meta["main_class"]] for pair in found)
    assert all("{c}" in template for template in bench.TEMPLATES)


def test_short_captions_fit_the_towers_and_long_ones_do_not(found):
    from open_clip.tokenizer import SimpleTokenizer

    encode, context = SimpleTokenizer().encode, bench.tower()["text_cfg"]["context_length"]
    for pair in found:
        lengths = {source: len(encode(text)) + 2 for source, text in pair.captions.items()}
        assert lengths.pop("long") > 79
        assert max(lengths[source] for source in ("alt", "heldout", *(f"rewrite{n}" for n in range(1, 5)))) <= context


def test_the_bench_s_pictures_are_not_scaled():
    assert bench.pairs().pool.canvas_pixels == bench.tower()["vision_cfg"]["image_size"]
