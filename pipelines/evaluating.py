"""`clipworks evaluate`: checkpoints and a suite become a recipe, which runs, resumes and is reused like any other."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from data import storage
from data.artifacts import RECORD_NAME
from data.errors import RecipeError
from data.spec import digest
from data.specs import IngestSpec, SplitSpec
from data.stage import StageSpec
from evaluation.specs import DenseProbe, EvaluateSpec, ReportSpec, Scored, Shown, Task, prompts_of
from pipelines.checkpoints import names_remote_weights, read_checkpoint
from pipelines.recipe import Recipe
from pipelines.suites.spec import Suite, SuiteSet, with_like
from training.specs import EmbedSpec, ModelSpec

DEFAULT_ROOT = "runs"
_STAGE_PART = 12  # characters of a name inside a stage's name, which has 40


class Model(NamedTuple):
    """A checkpoint to evaluate, and the open_clip config of its towers where it is known without loading them."""

    label: str
    spec: ModelSpec
    config: Mapping[str, Any]

    @property
    def has_patches(self) -> bool:
        """Whether the image tower is open_clip's own ViT, whose patch tokens can be read."""
        vision = self.config.get("vision_cfg")
        if not isinstance(vision, dict) or vision.get("timm_model_name"):
            return False
        return isinstance(vision.get("layers", 12), int)  # a ResNet's are a list


def root_of(checkpoints: Iterable[str]) -> str:
    """Where artifacts go if nobody says: where the first checkpoint of ours lies, else `runs`.

    Below that root lies what a checkpoint was trained on, so that an evaluation can be checked against it.
    """
    folders = (text for text in checkpoints if not names_remote_weights(text))
    ours = (text for text in folders if storage.exists(storage.join(storage.normalise(text), RECORD_NAME)))
    return next((storage.parent_of(storage.normalise(text)) for text in ours), DEFAULT_ROOT)


def read_models(checkpoints: Sequence[str], labels: Sequence[str], root: str) -> dict[str, Model]:
    """Models by label.

    Raises:
        UserError: a checkpoint is not one, or labels are too few, too many or twice.
    """
    if labels and len(labels) != len(checkpoints):
        raise RecipeError(f"--labels: {len(labels)} labels for {len(checkpoints)} checkpoints; give one each")
    found: dict[str, Model] = {}
    for number, text in enumerate(checkpoints):
        name, spec, config = read_checkpoint(text, root)
        label = labels[number] if labels else _free_label(name, found, text)
        if label in found:
            raise RecipeError(f"--labels: {label!r} comes twice; give every checkpoint a label of its own")
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,39}", label):
            raise RecipeError(f"--labels: {label!r}: use at most 40 of a-z, 0-9, _ and -, a letter or digit first")
        found[label] = Model(label, spec, config)
    return found


def _free_label(name: str, taken: Iterable[str], text: str) -> str:
    label = re.sub(r"[^a-z0-9_-]", "-", name.lower()).strip("-_")[:40] or "model"
    return label if label not in taken else f"{label[:34]}-{digest(text)[:4]}"


def suite_recipe(suite: Suite, models: Mapping[str, Model]) -> Recipe:
    """One recipe: pairs and splits once, features and an evaluation per model, one report that compares with the first.

    Raises:
        RecipeError: the suite does not fit together.
    """
    stages: dict[str, StageSpec] = {}
    for name, one in suite.sets.items():
        if one.pool is not None:
            stages[f"pairs_{_short(name)}"] = IngestSpec(pool=one.pool, pairs_per_shard=one.pairs_per_shard)
            stages[f"split_{_short(name)}"] = SplitSpec(pairs=f"pairs_{_short(name)}", holdouts=one.holdouts)
    for label, model in models.items():
        stages |= _model_stages(suite, label, model)
    first, *others = models
    stages["report"] = _report(suite, models, dict.fromkeys(others, first))
    skipped = "".join(f"\nSkipped {name}: {reason}." for name, reason in suite.skipped.items())
    return Recipe(
        name=f"evaluate_{suite.name}"[:40],
        title=f"{suite.title}: {', '.join(models)}"[:200],
        purpose=suite.purpose + skipped,
        hardware="any; a GPU for larger towers",
        expect="Every number with its interval, chance level and baselines.",
        stages=stages,
    )


def _model_stages(suite: Suite, label: str, model: Model) -> dict[str, StageSpec]:
    checkpoint = f"model_{_short(label)}"
    stages: dict[str, StageSpec] = {checkpoint: model.spec}
    sets: dict[str, Scored] = {}
    for name, one in suite.sets.items():
        tasks = _tasks_for(one, model)
        owner = one.like or name
        features, views = f"features_{_short(owner)}_{_short(label)}", f"views_{_short(name)}_{_short(label)}"
        if one.pool is not None:
            stages[features] = _embed(suite, name, checkpoint, model)
        if one.views:
            stages[views] = EmbedSpec(
                checkpoint=checkpoint, **_from(owner), splits=one.views_of or one.scored, plain=False, views=one.views
            )
        if tasks:
            sets[name] = Scored(
                features=features, **_from(owner), views=views if one.views else None, splits=one.scored, tasks=tasks,
                cluster_field=one.cluster_field,
            )  # fmt: skip
    stages[f"evaluate_{_short(label)}"] = EvaluateSpec(sets=sets, bootstrap=suite.bootstrap)
    return stages


def _embed(suite: Suite, name: str, checkpoint: str, model: Model) -> EmbedSpec:
    """Features for a set and all that are like it."""
    own, together = suite.sets[name], list(with_like(suite, name))
    splits = dict.fromkeys(split for one in together for split in one.embedded)
    return EmbedSpec(
        checkpoint=checkpoint, **_from(name), splits=tuple(splits),
        prompts=prompts_of(task for one in together for task in one.tasks.values()), queries=own.queries,
        patches=own.patches if model.has_patches else None,
    )  # fmt: skip


def _from(name: str) -> dict[str, str]:
    return {"pairs": f"pairs_{_short(name)}", "split": f"split_{_short(name)}"}


def _tasks_for(one: SuiteSet, model: Model) -> dict[str, Task]:
    """What can be asked of this model: patch tokens are open_clip's ViTs' only."""
    return {
        label: task for label, task in one.tasks.items() if model.has_patches or not isinstance(task, DenseProbe)
    }  # fmt: skip


def _report(suite: Suite, models: Mapping[str, Model], compare: dict[str, str]) -> ReportSpec:
    first, own = next(iter(suite.sets.items()))
    assert own.main is not None, "the suite checks it"
    shown = {
        name: Shown(pairs=_from(one.like or name)["pairs"], vendors=one.shown)
        for name, one in suite.sets.items() if one.shown is not None
    }  # fmt: skip
    return ReportSpec(
        title=suite.title,
        evaluations={label: f"evaluate_{_short(label)}" for label in models},
        compare=compare,
        headline=(first, own.main.split, own.main.task, own.main.metrics[0]),
        averages={label: tuple(_numbers(suite, name) for name in names) for label, names in suite.averages.items()},
        sets=shown,
    )


def _numbers(suite: Suite, name: str) -> tuple[tuple[str, str, str, str], ...]:
    main = suite.sets[name].main
    assert main is not None, "the suite checks it"
    return tuple((name, main.split, main.task, metric) for metric in main.metrics)


def _short(name: str) -> str:
    """A name that fits into a stage's name, still its own."""
    return name if len(name) <= _STAGE_PART else f"{name[: _STAGE_PART - 5].rstrip('-_')}-{digest(name)[:4]}"
