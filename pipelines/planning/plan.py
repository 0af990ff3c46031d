"""What a run would do, without doing it: per stage reuse or run, and pairs. What it takes is told by `cost.py`."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from data import storage
from data.artifacts import SHORT, Artifact, find_fingerprint
from data.errors import UserError
from data.lines import counts_text as counts_text
from data.lines import duration as duration
from data.place import Place
from data.stage import StageSpec
from pipelines.recipe import Recipe
from training.specs import ModelSpec

_COUNT_NAMES = ("pairs", "kept", "samples_seen", "images")


class StagePlan(NamedTuple):
    """What is known of one stage before it runs. `fingerprint` is None where the source cannot be read (`problem`).

    `twin` is the same artifact in a root that was only given to be measured: not reused, but its counts and its sizes
    are those that the stage will have.
    """

    name: str
    spec: StageSpec
    fingerprint: str | None
    artifact: Artifact | None
    pairs: int | None
    problem: str | None
    twin: Artifact | None = None

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


def make_plan(recipe: Recipe, place: Place, measured: Sequence[str] = ()) -> list[StagePlan]:
    """Plan every stage, parents first; in the roots `measured` the same artifacts tell how many pairs there will be."""
    roots = [storage.normalise(place.root), *(storage.normalise(root) for root in measured)]
    folders = {root: storage.list_folders(root) for root in roots}  # once: on object storage a listing is a request
    plans: dict[str, StagePlan] = {}
    for name in recipe.order():
        plans[name] = _plan_stage(name, recipe.stages[name], plans, folders)
    return list(plans.values())


def _plan_stage(name: str, spec: StageSpec, plans: dict[str, StagePlan], folders: Mapping[str, list[str]]) -> StagePlan:
    """`folders` are those of the place's own root, and of others behind it."""
    parents = {role: plans[stage] for role, (stage, _) in spec.roles().items()}
    prints = {role: plan.fingerprint for role, plan in parents.items()}
    fingerprint, problem, root = None, None, next(iter(folders))
    known = {role: print_ for role, print_ in prints.items() if print_ is not None}
    if len(known) == len(prints):
        try:
            fingerprint = spec.fingerprint(known)
        except UserError as error:
            problem = str(error)
    found = _find(fingerprint, folders)
    artifact = found.pop(root, None)
    if artifact is None and isinstance(spec, ModelSpec) and spec.artifact:
        problem = f"artifact: {spec.artifact[:SHORT]}: no such checkpoint below {root}; give the root it lies in"
    twin = None if artifact else next(iter(found.values()), None)
    return StagePlan(name, spec, fingerprint, artifact, _pairs(spec, artifact or twin, parents), problem, twin)


def _find(fingerprint: str | None, folders: Mapping[str, list[str]]) -> dict[str, Artifact]:
    """Root -> the complete artifact there, for the roots that have it; no further root is asked behind one that has."""
    for root, names in folders.items():
        artifact = find_fingerprint(root, fingerprint, names) if fingerprint else None
        if artifact is not None:
            return {root: artifact}
    return {}


def _pairs(spec: StageSpec, artifact: Artifact | None, parents: dict[str, StagePlan]) -> int | None:
    """Pairs of a finished stage, from its record; of another one, those it will go through, where that is known."""
    if artifact:
        counts = artifact.record.counts
        return next((counts[name] for name in _COUNT_NAMES if name in counts), None)
    return spec.workload(counts_of(parents)) or None


def counts_of(parents: Mapping[str, StagePlan]) -> dict[str, dict[str, int]]:
    """Role -> counts of a parent's record; of one that is to be made, the pairs that it is expected to hold."""
    found: dict[str, dict[str, int]] = {}
    for role, plan in parents.items():
        known = plan.artifact or plan.twin
        expected = {} if plan.pairs is None or plan.kind == "train" else {"pairs": plan.pairs}
        found[role] = known.record.counts if known else expected
    return found


def work_of(plan: StagePlan, plans: Mapping[str, StagePlan]) -> int | None:
    """Pairs that a stage goes through; 0 where its time does not depend on them, None where they are not known."""
    known = plan.artifact or plan.twin
    work = plan.spec.workload(counts_of({role: plans[stage] for role, (stage, _) in plan.spec.roles().items()}))
    return known.record.counts.get("pairs") if work is None and known else work
