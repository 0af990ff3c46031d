"""Whether an evaluation's and a report's names fit the stages that they come from; each misfit is one line."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from data.errors import RecipeError
from data.specs import RewriteSpec
from data.stage import StageSpec
from evaluation.specs import (
    Association,
    ConceptAssociation,
    DenseProbe,
    EvaluateSpec,
    OutOfDistribution,
    Probe,
    ReportSpec,
    Robustness,
    Scored,
    Task,
    ZeroShot,
)
from pipelines.explain import need
from training.specs import Corrupted, Cropped, EmbedSpec, Prompts

Stages = Mapping[str, StageSpec]
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
_SOURCES = ("caption_source", "caption_sources", "right", "wrong")


class _Set(NamedTuple):
    """One scored set with the stages that embed it."""

    place: str
    scored: Scored
    embed: EmbedSpec
    views: EmbedSpec | None


def check_evaluate(place: str, stage: EvaluateSpec, stages: Stages) -> None:
    """Sets, splits and tasks exist in the features they are read from; nothing is fitted on what is scored."""
    sets = {name: _set(f"{place}.sets.{name}", scored, stages) for name, scored in stage.sets.items()}
    for name, one in sets.items():
        _check_name(one.place, name, "set")
        _check_features(one)
        for label, task in one.scored.tasks.items():
            _check_name(f"{one.place}.tasks.{label}", label, "task")
            _check_task(f"{one.place}.tasks.{label}", task, name, sets, stages)


def _set(place: str, scored: Scored, stages: Stages) -> _Set:
    embed = stages[scored.features]
    views = stages[scored.views] if scored.views else None
    assert isinstance(embed, EmbedSpec)
    assert views is None or isinstance(views, EmbedSpec)
    return _Set(place, scored, embed, views)


def _check_name(place: str, name: str, what: str) -> None:
    if not _NAME.fullmatch(name):
        raise RecipeError(
            f"{place}: {name!r}: name a {what} with at most 40 of a-z, 0-9, _ and -, a letter or digit first"
        )


def _check_features(one: _Set) -> None:
    """Features are of this set's pairs and splits."""
    place, scored = one.place, one.scored
    for role, embed in (("features", one.embed), ("views", one.views)):
        for field in ("pairs", "split"):
            ours, theirs = getattr(scored, field), getattr(embed, field, None)
            if embed is not None and ours != theirs:
                made = f"the {role} {getattr(scored, role)!r} were made with {theirs!r}"
                raise RecipeError(f"{place}.{field}: {ours!r}: {made}; use that")
    if not one.embed.plain:
        raise RecipeError(
            f"{place}.features: {scored.features!r}: holds views only (plain: false); name it as {place}.views"
        )
    for number, split in enumerate(scored.splits):
        if split == "train":
            raise RecipeError(f"{place}.splits.{number}: 'train': an evaluation scores held-out splits only; remove it")
        _check_name(f"{place}.splits.{number}", split, "split")
        need(f"{place}.splits.{number}", split, one.embed.splits, f"not embedded by {scored.features!r}")


def _check_task(place: str, task: Task, name: str, sets: Mapping[str, _Set], stages: Stages) -> None:
    one = sets[name]
    for path, prompts in _prompts_in(task):
        _check_prompts(f"{place}.{path}", prompts, one)
    for path, split in _learns_from(task):
        need(f"{place}.{path}", split, one.embed.splits, f"not embedded by {one.scored.features!r}")
        _refuse_scored(f"{place}.{path}", split, one, sets)
    for path, where in _others(task):
        _check_other(f"{place}.{path}", where, name, sets)
    for path, source in _sources(task):
        _check_source(f"{place}.{path}", source, one, stages)
    _check_looks(place, task, one)
    if isinstance(task, ZeroShot) and task.prompts.classes is not None:
        for number, name_of_class in enumerate(task.only_classes or ()):
            need(f"{place}.only_classes.{number}", name_of_class, task.prompts.classes, "not among prompts.classes")


def _prompts_in(task: Task) -> Iterator[tuple[str, Prompts]]:
    for field in type(task).model_fields:
        if isinstance(getattr(task, field), Prompts):
            yield field, getattr(task, field)


def _check_prompts(place: str, prompts: Prompts, one: _Set) -> None:
    """Every template has its gap and was embedded with these very classes."""
    embedded = {(known.field, template, known.classes) for known in one.embed.prompts for template in known.templates}
    for number, template in enumerate(prompts.templates):
        here = f"{place}.templates.{number}: {template!r}"
        if "{c}" not in template:
            raise RecipeError(f"{here}: a template has {{c}} where the class name goes")
        if (prompts.field, template, prompts.classes) not in embedded:
            classes = " with these classes" if prompts.classes else ""
            raise RecipeError(
                f"{here}: not embedded for {prompts.field!r}{classes}; add it to stages.{one.scored.features}.prompts"
            )


def _learns_from(task: Task) -> Iterator[tuple[str, str]]:
    """(field, split) of what a task fits or chooses on; without `fit` nothing is chosen either."""
    if getattr(task, "fit", None) is not None:
        yield from ((field, getattr(task, field)) for field in ("fit", "select") if hasattr(task, field))


def _refuse_scored(place: str, split: str, one: _Set, sets: Mapping[str, _Set]) -> None:
    for other, theirs in sets.items():
        same = (theirs.scored.pairs, theirs.scored.split) == (one.scored.pairs, one.scored.split)
        if same and split in theirs.scored.splits:
            raise RecipeError(
                f"{place}: {split!r}: is scored in set {other!r}; fit and choose on a split that is not scored"
            )


def _others(task: Task) -> Iterator[tuple[str, str]]:
    """(path, `set/split`) of the other distributions a task reads."""
    if isinstance(task, OutOfDistribution):
        yield from ((f"out.{number}", where) for number, where in enumerate(task.out))
    if (reference := getattr(task, "reference", None)) is not None:
        yield "reference", reference


def _check_other(place: str, where: str, name: str, sets: Mapping[str, _Set]) -> None:
    other, _, split = where.rpartition("/")
    need(place, other or name, sets, "no such set in this evaluation")
    need(place, split, sets[other or name].embed.splits, f"set {other or name!r} has no such split embedded")


def _sources(task: Task) -> Iterator[tuple[str, str]]:
    for field in _SOURCES:
        value = getattr(task, field, ())
        named = [(field, value)] if isinstance(value, str) else [(f"{field}.{n}", v) for n, v in enumerate(value)]
        yield from named


def _check_source(place: str, source: str, one: _Set, stages: Stages) -> None:
    """A rewritten source was embedded; what a pool writes is known only when it is read."""
    written = {spec.writes: name for name, spec in stages.items() if isinstance(spec, RewriteSpec)}
    if source in written and written[source] not in one.embed.caption_layers:
        raise RecipeError(
            f"{place}: {source!r}: written by a layer that was not embedded; "
            f"add {written[source]!r} to stages.{one.scored.features}.caption_layers"
        )


def _check_looks(place: str, task: Task, one: _Set) -> None:
    """Views, patches and queries that a task reads were made."""
    scored = one.scored
    if isinstance(task, Robustness):
        _check_views(place, "robustness reads corrupted views", Corrupted, scored.splits, one)
    if isinstance(task, Probe) and task.augmented:
        _check_views(f"{place}.augmented", "reads cropped views", Cropped, (task.fit,), one)
    if isinstance(task, DenseProbe) and one.embed.patches is None:
        raise RecipeError(f"{place}: reads patch tokens; set stages.{scored.features}.patches")
    if isinstance(task, ConceptAssociation | Association) and not one.embed.queries:
        raise RecipeError(f"{place}: its texts were not embedded; add them to stages.{scored.features}.queries")


def _check_views(place: str, what: str, kind: type[Any], splits: tuple[str, ...], one: _Set) -> None:
    if one.views is None or not any(isinstance(view, kind) for view in one.views.views.values()):
        raise RecipeError(f"{place}: {what}; name an embed stage with such views as {one.place}.views")
    for split in splits:
        need(f"{one.place}.views", split, one.views.splits, f"a split not embedded by {one.scored.views!r}")


def headline_splits(report: ReportSpec, stages: Stages) -> set[str]:
    """Names of the split stages behind the set of a report's headline."""
    evaluations = _evaluations(report, stages)
    return {e.sets[report.headline[0]].split for e in evaluations if report.headline[0] in e.sets}


def _evaluations(report: ReportSpec, stages: Stages) -> list[EvaluateSpec]:
    return [spec for spec in map(stages.get, report.evaluations.values()) if isinstance(spec, EvaluateSpec)]


def check_report(place: str, stage: ReportSpec, stages: Stages) -> None:
    """Labels, headline, sets and gallery are those of its evaluations."""
    labels = list(stage.evaluations)
    for number, label in enumerate(stage.controls):
        need(f"{place}.controls.{number}", label, labels, "no such evaluation label")
    for label, base in stage.compare.items():
        need(f"{place}.compare.{label}", label, labels, "no such evaluation label")
        need(f"{place}.compare.{label}", base, labels, "no such evaluation label")
    for label in stage.checkpoints:
        need(f"{place}.checkpoints.{label}", label, labels, "no such evaluation label")
    found = _evaluations(stage, stages)
    known = {name: scored for evaluation in found for name, scored in evaluation.sets.items()}
    set_name, split, task, _ = stage.headline
    need(f"{place}.headline.0", set_name, known, "no evaluation has this set")
    need(f"{place}.headline.1", split, known[set_name].splits, "no evaluation has this split")
    need(f"{place}.headline.2", task, known[set_name].tasks, "no evaluation has this task")
    for name, shown in stage.sets.items():
        need(f"{place}.sets.{name}", name, known, "no evaluation has this set")
        if shown.pairs != known[name].pairs:
            raise RecipeError(f"{place}.sets.{name}.pairs: {shown.pairs!r}: the evaluation's are {known[name].pairs!r}")
    _check_gallery(f"{place}.gallery", stage, stages)


def _check_gallery(place: str, stage: ReportSpec, stages: Stages) -> None:
    gallery = stage.gallery
    embed = stages[gallery.features] if gallery else None
    if gallery is None or not isinstance(embed, EmbedSpec):
        return
    need(f"{place}.split", gallery.split, embed.splits, f"not embedded by {gallery.features!r}")
    for number, query in enumerate(gallery.queries):
        need(f"{place}.queries.{number}", query, embed.queries, f"not among stages.{gallery.features}.queries")
