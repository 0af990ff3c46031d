"""Compositional benchmarks in their authors' own files: which caption, or which of two pictures, is the right one.

Looked for below the folder: `sugar_crepe/*.json` with `val2017/`, `aro/` with `images/`, `winoground/` with `images/`,
`mmvp/` with `MLLM_VLM Images/`, `coco_karpathy_test.json` with the pictures its paths name.
"""

from typing import NamedTuple

from data import storage
from data.errors import RecipeError
from data.specs import CompositionLayout, CompositionPool, HoldoutRest
from evaluation.specs import CaptionSelection, PairedSelection, Task
from pipelines.suites.benchmark_sets import TEST, open_root
from pipelines.suites.spec import Main, Suite, SuiteSet

ACCURACY = "caption_accuracy"
_SUGAR_CREPE = ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")


class Known(NamedTuple):
    """A benchmark's file and pictures below the folder, and how it is scored."""

    layout: CompositionLayout
    annotations: str
    images: str
    task: Task
    metrics: tuple[str, ...] = (ACCURACY,)


_SELECTION = CaptionSelection(wrong=("negative",))
KNOWN: dict[str, Known] = {
    **{
        f"sugar_crepe-{name}": Known("sugar_crepe", f"sugar_crepe/{name}.json", "val2017", _SELECTION)
        for name in _SUGAR_CREPE
    },
    "aro_relation": Known(
        "aro_relation", "aro/visual_genome_relation.json", "aro/images",
        CaptionSelection(wrong=("negative",), macro_field="relation"), (f"macro_relation_{ACCURACY}",),
    ),
    "aro_attribution": Known(
        "aro_attribution", "aro/visual_genome_attribution.json", "aro/images",
        CaptionSelection(wrong=("negative",), macro_field="attributes", min_cases=25),
        (f"macro_attributes_{ACCURACY}",),
    ),
    "caption_order": Known("caption_order", "coco_karpathy_test.json", ".", CaptionSelection(wrong=("negative*",))),
    "winoground": Known(
        "winoground", "winoground/examples.jsonl", "winoground/images", PairedSelection(), ("group_score",)
    ),
    "mmvp": Known("mmvp", "mmvp/Questions.csv", "mmvp/MLLM_VLM Images", PairedSelection(macro_field="pattern"),
                  ("image_score",)),
}  # fmt: skip


def suite(data: str, group: str = "") -> Suite:
    """Those of the benchmarks that lie below a folder; `group` is the beginning of their names.

    Raises:
        RecipeError: none is there.
    """
    root = open_root(data)
    sets: dict[str, SuiteSet] = {}
    skipped: dict[str, str] = {}
    for name, known in KNOWN.items():
        annotations, images = storage.join(root, known.annotations), storage.join(root, known.images)
        if not name.startswith(group):
            continue
        missing = next((part for uri, part in ((annotations, known.annotations), (images, known.images))
                        if not storage.exists(uri)), None)  # fmt: skip
        if missing:
            skipped[name] = f"no {missing}"
            continue
        sets[name] = SuiteSet(
            pool=CompositionPool(layout=known.layout, annotations=annotations, images=images),
            holdouts={TEST: HoldoutRest()}, scored=(TEST,), tasks={"selection": known.task},
            main=Main(split=TEST, task="selection", metrics=known.metrics),
        )  # fmt: skip
    if not sets:
        raise RecipeError(
            f"--data {data}: none of the benchmarks here; the nearest lacks {skipped[next(iter(skipped))]}"
        )
    return Suite(
        name=group or "composition",
        title=f"Composition, {len(sets)} of {len(sets) + len(skipped)} benchmarks",
        purpose="Right captions and pictures against wrong ones that differ in one respect, by strict inequality.",
        sets=sets,
        averages={group or "composition": tuple(sets)},
        skipped=skipped,
    )
