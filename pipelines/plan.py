"""What a run would do, without doing it: per stage reuse or run, pairs, and the time an earlier run of it took."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from data import storage
from data.artifacts import SHORT, Artifact, find_fingerprint
from data.errors import UserError
from data.place import Place
from data.stage import StageSpec
from pipelines.recipe import Recipe
from training.specs import ModelSpec, TrainSpec

_COUNT_NAMES = ("pairs", "kept", "samples_seen", "images")


class StagePlan(NamedTuple):
    """What is known of one stage before it runs. `fingerprint` is None where the source cannot be read (`problem`)."""

    name: str
    spec: StageSpec
    fingerprint: str | None
    artifact: Artifact | None
    pairs: int | None
    seconds: float | None
    problem: str | None

    @property
    def kind(self) -> str:
        """Kind of the stage."""
        return self.spec.kind

    @property
    def artifact_name(self) -> str | None:
        """Folder name of the artifact that is, or is to be."""
        if self.artifact:
            return storage.name_of(self.artifact.uri)
        return f"{self.name}-{self.fingerprint[:SHORT]}" if self.fingerprint else None

    def events_uri(self, root: str) -> str:
        """Where this stage's events go."""
        assert self.fingerprint
        return storage.join(storage.normalise(root), ".events", f"{self.name}-{self.fingerprint[:SHORT]}.jsonl")


def make_plan(recipe: Recipe, place: Place) -> list[StagePlan]:
    """Plan every stage, parents first."""
    timings = _timings(place.root)
    plans: dict[str, StagePlan] = {}
    for name in recipe.order():
        plans[name] = _plan_stage(name, recipe.stages[name], plans, place, timings)
    return list(plans.values())


def _plan_stage(
    name: str, spec: StageSpec, plans: dict[str, StagePlan], place: Place, timings: dict[str, str]
) -> StagePlan:
    parents = {role: plans[stage] for role, (stage, _) in spec.roles().items()}
    prints = {role: plan.fingerprint for role, plan in parents.items()}
    fingerprint, problem = None, None
    known = {role: print_ for role, print_ in prints.items() if print_ is not None}
    if len(known) == len(prints):
        try:
            fingerprint = spec.fingerprint(known)
        except UserError as error:
            problem = str(error)
    artifact = find_fingerprint(place.root, fingerprint) if fingerprint else None
    if artifact is None and isinstance(spec, ModelSpec) and spec.artifact:
        problem = f"artifact: {spec.artifact[:SHORT]}: no such checkpoint below {place.root}; give the root it lies in"
    seconds = None if artifact or name not in timings else float(storage.read_json(timings[name])["seconds"])
    return StagePlan(name, spec, fingerprint, artifact, _pairs(spec, artifact, parents), seconds, problem)


def _pairs(spec: StageSpec, artifact: Artifact | None, parents: dict[str, StagePlan]) -> int | None:
    """Pairs of a finished stage, from its record; of another one, those it will go through, where that is known."""
    if artifact:
        counts = artifact.record.counts
        return next((counts[name] for name in _COUNT_NAMES if name in counts), None)
    if isinstance(spec, TrainSpec):
        return sum(phase.samples_seen for phase in spec.phases.values())
    return next((parents[role].pairs for role in ("selection", "pairs") if role in parents), None)


def _timings(root: str) -> dict[str, str]:
    """Stage name -> newest file that says how long the stage of this name took."""
    folder = storage.join(storage.normalise(root), ".events")
    found: dict[str, str] = {}
    names = [name for name, _ in storage.list_files(folder) if name.endswith(".timing.json")]
    for name in sorted(names, key=lambda name: _modified(storage.join(folder, name))):
        stage = re.sub(rf"-[0-9a-f]{{{SHORT}}}\.timing\.json$", "", name)
        found[stage] = storage.join(folder, name)
    return found


def _modified(uri: str) -> float:
    return Path(uri).stat().st_mtime if storage.is_local(uri) else 0.0


def total_seconds(recipe: Recipe, plans: list[StagePlan]) -> tuple[float | None, str]:
    """(seconds a run would take, what that number rests on)."""
    to_run = [plan for plan in plans if not plan.artifact]
    known = [plan.seconds for plan in to_run if plan.seconds is not None]
    if len(known) == len(to_run):
        return sum(known), "earlier runs of these stages here"
    if len(to_run) == len(plans) and recipe.minutes:
        return recipe.minutes * 60, f"the recipe, on {recipe.hardware}"
    if known:
        return sum(known), f"earlier runs of {len(known)} of these {len(to_run)} stages here; the others are not known"
    return None, "nothing: these stages have not run here"


def duration(seconds: float | None) -> str:
    """Seconds in a person's units."""
    if seconds is None:
        return "?"
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def counts_text(counts: Mapping[str, int], most: int) -> str:
    """The counts that say most: what is there before what was dropped, nothing that is 0."""
    ranked = sorted((what.startswith("dropped"), number) for number, what in enumerate(counts) if counts[what])
    names = [list(counts)[number] for _, number in ranked]
    return ", ".join(f"{counts[name]:,} {name.replace('_', ' ')}" for name in names[:most])


def plan_rows(plans: list[StagePlan]) -> list[dict[str, Any]]:
    """The plan as plain rows, for JSON."""
    return [
        {
            "stage": plan.name,
            "kind": plan.kind,
            "do": "reuse" if plan.artifact else "run",
            "fingerprint": plan.fingerprint,
            "artifact": plan.artifact_name,
            "pairs": plan.pairs,
            "seconds": 0.0 if plan.artifact else plan.seconds,
            "problem": plan.problem,
        }
        for plan in plans
    ]
