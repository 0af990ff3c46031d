"""What no single field can tell: whether the stages of a recipe fit each other.

Each misfit is one line, said before anything runs.
"""

from collections.abc import Iterator, Mapping

from data.curation.specs import CurateSpec, DedupSpec, MatchSpec
from data.errors import RecipeError, nearest
from data.specs import RewriteSpec, SplitSpec
from data.stage import StageSpec
from evaluation.specs import EvaluateSpec, ReportSpec
from pipelines.evaluation_checks import check_evaluate, check_report, headline_splits
from pipelines.explain import need
from training.specs import ClusterSampler, EmbedSpec, Objective, Phase, TrainSpec, Upcycle, Validation, View

Stages = Mapping[str, StageSpec]


def check_references(stages: Stages) -> None:
    """Every reference names a stage that makes what is needed."""
    for name, stage in stages.items():
        for role, (parent, kind) in stage.roles().items():
            place = f"stages.{name}.{role}: {parent!r}"
            makers = [other for other, spec in stages.items() if kind == spec.MAKES]
            if parent not in stages:
                raise RecipeError(f"{place}: no such stage{nearest(parent, makers) or _have(makers, kind)}")
            made = stages[parent].MAKES
            if made != kind:
                raise RecipeError(
                    f"{place}: makes a {made}, where a {kind} is needed{nearest(parent, makers) or _have(makers, kind)}"
                )


def _have(makers: list[str], kind: str) -> str:
    return f"; stages that make a {kind}: {', '.join(makers)}" if makers else f"; add a stage that makes a {kind}"


def order(stages: Stages) -> list[str]:
    """Names, parents first, otherwise as they come; RecipeError where stages wait for each other."""
    done: list[str] = []
    waiting = {name: {parent for parent, _ in stage.roles().values()} for name, stage in stages.items()}
    while waiting:
        ready = next((name for name, parents in waiting.items() if parents <= set(done)), None)
        if ready is None:
            raise RecipeError(
                f"stages: {' -> '.join(_cycle(waiting))}: a stage cannot need itself; change one reference"
            )
        done.append(ready)
        del waiting[ready]
    return done


def _cycle(waiting: Mapping[str, set[str]]) -> list[str]:
    path = [next(iter(waiting))]
    while path[-1] not in path[:-1]:
        path.append(next(parent for parent in sorted(waiting[path[-1]]) if parent in waiting))
    return path[path.index(path[-1]) :]


def check_stages(stages: Stages) -> None:
    """Splits, phases, prompts and labels that one stage names exist in the stage they come from."""
    for name, stage in stages.items():
        place = f"stages.{name}"
        if isinstance(stage, TrainSpec):
            _check_train(place, stage, stages)
        elif isinstance(stage, CurateSpec | EmbedSpec | MatchSpec | DedupSpec):
            _check_splits(place, stage.splits, _splits_of(stages, stage.split))
            if isinstance(stage, CurateSpec):
                _check_curate(place, stage, stages)
        elif isinstance(stage, EvaluateSpec):
            check_evaluate(place, stage, stages)
        elif isinstance(stage, ReportSpec):
            check_report(place, stage, stages)


def _splits_of(stages: Stages, split: str) -> list[str]:
    spec = stages[split]
    assert isinstance(spec, SplitSpec)
    return ["train", *spec.holdouts]


def _check_splits(place: str, splits: tuple[str, ...], known: list[str]) -> None:
    if not splits:
        raise RecipeError(f"{place}.splits: []: name at least one of {', '.join(known)}")
    for number, split in enumerate(splits):
        need(f"{place}.splits.{number}", split, known, "no such split")


def _check_curate(place: str, stage: CurateSpec, stages: Stages) -> None:
    """Filters have what they read; what is balanced was matched, and by the same captions."""
    for number, spec in enumerate(stage.filters):
        role = getattr(spec, "READS", None)
        if role is not None and getattr(stage, role) is None:
            makes = "inspect" if role == "inspection" else "embed"
            raise RecipeError(
                f"{place}.filters.{number}: {spec.filter!r}: reads {role}; add a stage of kind {makes!r} "
                f"and name it as {place}.{role}"
            )
    matches = stage.balance.matches if stage.balance else None
    for role, name in (("balance.matches", matches), ("duplicates", stage.duplicates)):
        made = stages.get(name) if name else None
        if not isinstance(made, MatchSpec | DedupSpec):
            continue
        for field in ("pairs", "split", "caption_source"):
            ours, theirs = getattr(stage, field), getattr(made, field)
            if ours != theirs:
                raise RecipeError(f"{place}.{field}: {ours!r}: {role} {name!r} was made with {theirs!r}; use the same")
        for number, split in enumerate(stage.splits):
            need(f"{place}.splits.{number}", split, list(made.splits), f"not among the splits of {name!r}")


def _check_train(place: str, stage: TrainSpec, stages: Stages) -> None:
    layers = [spec.writes for spec in map(stages.get, stage.caption_layers) if isinstance(spec, RewriteSpec)]
    written = {spec.writes: name for name, spec in stages.items() if isinstance(spec, RewriteSpec)}
    earlier = ["init"]
    for name, phase in stage.phases.items():
        here = f"{place}.phases.{name}"
        if not name.replace("_", "").replace("-", "").isalnum() or name == "init":
            raise RecipeError(f"{here}: {name!r}: a phase is named with letters, digits, _ and -, and not `init`")
        for path, other in _phase_references(phase):
            need(f"{here}.{path}", other, earlier, "not an earlier phase of this stage")
        for label, term in phase.objectives.items():
            _check_objective(f"{here}.objectives.{label}.loss", term.loss, phase)
        for path, weights in _caption_weights(phase.view):
            _check_captions(f"{here}.view.{path}", weights, layers, written)
        if phase.result == "best" and stage.validation is None:
            raise RecipeError(
                f"{here}.result: 'best': chosen by validation loss; add {place}.validation, or use 'last'"
            )
        earlier.append(name)
    if stage.validation is not None:
        _check_validation(f"{place}.validation", stage, stage.validation, stages)
        _check_captions(f"{place}.validation.source", {stage.validation.source: 1.0}, layers, written)


def _check_objective(place: str, loss: Objective, phase: Phase) -> None:
    """The teacher and the text slots that an objective names are those of its phase."""
    teacher = getattr(loss, "teacher", None)
    if teacher is not None:
        need(f"{place}.teacher", teacher, list(phase.teachers), "no such teacher in this phase")
    slots = list(phase.view.texts)
    for number, slot in enumerate(getattr(loss, "texts", ())):
        need(f"{place}.texts.{number}", slot, slots, "no such text slot in this phase's view")
    name, dot, slot = getattr(loss, "text", "").partition(".")
    if dot and name == "text_features":
        need(f"{place}.text", slot, slots, "no such text slot in this phase's view")


def _caption_weights(view: View) -> Iterator[tuple[str, Mapping[str, float]]]:
    """(path, weights) of the main caption and of each text slot."""
    yield "caption_weights", view.caption_weights
    yield from ((f"texts.{name}.caption_weights", slot.caption_weights) for name, slot in view.texts.items())


def _check_validation(place: str, stage: TrainSpec, validation: Validation, stages: Stages) -> None:
    """Validation pairs are held out, and where they choose the weights no headline is read off them."""
    name, selection = validation.name, stages.get(stage.selection)
    if name == "train":
        raise RecipeError(f"{place}.name: 'train': validation reads a held-out split; name another")
    need(f"{place}.name", name, _splits_of(stages, validation.split), "no such split")
    if isinstance(selection, CurateSpec) and selection.split == validation.split and name in selection.splits:
        raise RecipeError(f"{place}.name: {name!r}: {stage.selection!r} trains on this split; name another")
    if all(phase.result == "last" for phase in stage.phases.values()):
        return
    for label, report in stages.items():
        if (
            isinstance(report, ReportSpec)
            and name == report.headline[1]
            and validation.split in headline_splits(report, stages)
        ):
            raise RecipeError(
                f"{place}.name: {name!r}: weights chosen on the split that stages.{label}.headline judges them by; "
                "hold out another split for one of the two"
            )


def _phase_references(phase: Phase) -> Iterator[tuple[str, str]]:
    """(path, phase name) of everything in a phase that names another one."""
    yield "start", phase.start
    for number, surgery in enumerate(phase.surgeries):
        if isinstance(surgery, Upcycle):
            yield from ((f"surgeries.{number}.experts.{e}", expert) for e, expert in enumerate(surgery.experts))
    if isinstance(phase.view.sampler, ClusterSampler):
        yield from ((f"view.sampler.phases.{p}", other) for p, other in enumerate(phase.view.sampler.phases))


def _check_captions(place: str, weights: Mapping[str, float], layers: list[str], written: Mapping[str, str]) -> None:
    for source, weight in weights.items():
        if weight < 0:
            raise RecipeError(f"{place}.{source}: {weight}: a weight is 0 or more")
        if source in written and source not in layers:
            raise RecipeError(
                f"{place}.{source}: written by a layer that is not read; add {written[source]!r} to caption_layers"
            )
    if sum(weights.values()) <= 0:
        raise RecipeError(f"{place}: {dict(weights)}: give at least one source a weight above 0")
