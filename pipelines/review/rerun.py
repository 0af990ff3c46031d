"""`clipworks runs rerun`: a run again, exactly; or what is missing for that. At the end: which bytes came out the same.

A fingerprint says that recipe, sources and revisions are the same; versions, commit and image are compared beside it,
because they can change bytes that a fingerprint does not see. Checksums of what comes out are the proof.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from data import storage
from data.artifacts import Artifact, Record, find_fingerprint
from data.errors import RecipeError
from data.place import Place
from pipelines.planning.plan import StagePlan, make_plan
from pipelines.recipe import Recipe, parse_recipe
from pipelines.recipe_diff import recipe_diff
from pipelines.review.text import say
from pipelines.runs import RunRecord, read_run, versions

if TYPE_CHECKING:
    from rich.console import Console

_DIGEST = re.compile(r"[0-9a-f]{12,64}")
IDENTICAL, REUSED, GONE, OTHER = "identical", "reused", "original gone", "differs"


class Rerun(NamedTuple):
    """What a rerun is made of. `problems` forbid it, unless the user wants it anyway."""

    record: RunRecord
    recipe: Recipe
    place: Place
    problems: list[str]


class Outcome(NamedTuple):
    """How an artifact of the rerun compares with the original's."""

    stage: str
    verdict: str
    text: str


def prepare(root: str, run: str, new_root: str | None, place: Place | None) -> Rerun:
    """Look whether a run can be repeated exactly.

    Args:
        root: where the run was.
        run: its name.
        new_root: another root, where everything is computed again; None: the same, where what is complete is reused.
        place: where to run it; None: as the record says.

    Raises:
        RecipeError: there is no such run, or its recipe cannot be read by this version.
    """
    record = read_run(root, run)
    recipe = parse_recipe(record.recipe, f"run {run}")
    if record.submission and place is None:
        raise RecipeError(
            f"run {run!r}: ran on a cluster; `clipworks runs show {run} --root {root} --recipe > FILE.yaml` and "
            "submit that there, or give --place FILE to rerun it on this machine"
        )
    where = place or Place.model_validate(record.place)
    where = where.model_copy(update={"root": storage.normalise(new_root or root)})
    plans = make_plan(recipe, where)
    problems = [*_sources(record, plans, root), *_versions(record), *_code(record, where)]
    return Rerun(record, recipe, where, problems)


def _sources(record: RunRecord, plans: list[StagePlan], root: str) -> list[str]:
    """Stages that would not be the same: only the first of a chain is named, the others follow from it."""
    names, problems, changed = storage.list_folders(root), [], set()
    for plan in plans:
        was = record.stages.get(plan.name)
        parents = {stage for stage, _ in plan.spec.roles().values()}
        if plan.problem:
            problems.append(f"stages.{plan.name}: {plan.problem}")
        if was is None or was.fingerprint is None or was.fingerprint == plan.fingerprint:
            continue
        changed.add(plan.name)
        if parents & changed or plan.problem:
            continue
        original = find_fingerprint(root, was.fingerprint, names)
        problems.append(f"stages.{plan.name}: {_why(plan, original.record if original else None)}")
    return problems


def _why(plan: StagePlan, was: Record | None) -> str:
    """Why a stage whose parents are the same has another fingerprint."""
    if was is None:
        return "would be another artifact, and the original, which would say why, is gone"
    if was.revision != plan.spec.REVISION:
        return f"clipworks makes it otherwise now (revision {was.revision}, now {plan.spec.REVISION}); use its commit"
    config = plan.spec.resolved()
    source, now = was.config.get("source"), config.get("source")
    if source != now:
        return f"its source has changed: {_changed_source(plan, source or {}, now or {})}; bring it back"
    fields = [one.path for one in recipe_diff(was.config, config) if not one.path.endswith(")")]  # order is no field
    named = f" ({', '.join(fields[:3])}{' ...' if len(fields) > 3 else ''})" if fields else ""
    return f"its fields differ from the original's{named}; use the commit that made it"


def _changed_source(plan: StagePlan, was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    pool = getattr(plan.spec, "pool", None)
    parts = [name for name in [*was, *(name for name in now if name not in was)] if was.get(name) != now.get(name)]
    places = ((name, getattr(pool, name, None) or getattr(pool, "url", None)) for name in parts)
    return ", ".join(f"{name} ({place})" if isinstance(place, str) else name for name, place in places)


def _versions(record: RunRecord) -> list[str]:
    now, problems = versions(), []
    for name in [*record.versions, *(name for name in now if name not in record.versions)]:
        was, is_ = record.versions.get(name), now.get(name)
        if was != is_:
            problems.append(f"{name}: was {was or 'not there'}, is {is_ or 'not there'}")
        elif name == "commit" and str(was).endswith("+changed"):
            problems.append(f"commit: {was}: files differed from the commit, which of them is not known")
    return problems


def _code(record: RunRecord, place: Place) -> list[str]:
    """The archive of code and the image that the run used."""
    problems = []
    image = place.image if place.runner == "container" else None
    if record.image != image:
        problems.append(f"image: was {record.image or 'no container'}, is {image or 'no container'}")
    if record.code is None:
        return problems
    if place.code != record.code:
        problems.append(f"code: was {record.code}, is {place.code or 'that of the packages here'}")
    elif not storage.exists(record.code):
        problems.append(f"code: {record.code}: is gone")
    else:
        named = _DIGEST.search(storage.name_of(record.code))
        if named and not hashlib.sha256(storage.read_bytes(record.code)).hexdigest().startswith(named[0]):
            problems.append(f"code: {record.code}: holds other bytes than its name says")
    return problems


def refuse(rerun: Rerun, console: "Console") -> None:
    """List what stands against an exact repetition.

    Raises:
        RecipeError: something does.
    """
    for problem in rerun.problems:
        say(console, problem)
    if rerun.problems:
        count = len(rerun.problems)
        many = f"{count} things differ, listed" if count > 1 else "one thing differs, said"
        raise RecipeError(
            f"run {rerun.record.name!r} cannot be repeated exactly: {many} above; put that right, or give --anyway"
        )


def compare(rerun: Rerun, root: str) -> list[Outcome]:
    """Every artifact of the rerun against the original's."""
    new_names, old_names = storage.list_folders(rerun.place.root), storage.list_folders(root)
    is_same_root = storage.normalise(root) == rerun.place.root
    found = []
    for plan in make_plan(rerun.recipe, rerun.place):
        was = rerun.record.stages.get(plan.name)
        now = find_fingerprint(rerun.place.root, plan.fingerprint, new_names) if plan.fingerprint else None
        old = find_fingerprint(root, was.fingerprint, old_names) if was and was.fingerprint else None
        found.append(Outcome(plan.name, *_verdict(now, old, is_same_root)))
    return found


def _verdict(now: Artifact | None, old: Artifact | None, is_same_root: bool) -> tuple[str, str]:
    if now is None or old is None:
        return GONE, "the original artifact is not below its root any more" if now else "not made"
    if now.fingerprint != old.fingerprint:
        return OTHER, "another fingerprint: recipe, source or revision differ"
    if is_same_root and now.uri == old.uri:
        return REUSED, "the original itself"
    ours, theirs = now.record.checksums, old.record.checksums
    files = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    if not files:
        return IDENTICAL, f"fingerprint and {len(ours):,} checksums"
    more = f" and {len(files) - 3} more" if len(files) > 3 else ""
    return OTHER, f"same fingerprint, other bytes in {', '.join(files[:3])}{more}"


def show(outcomes: list[Outcome], console: "Console") -> None:
    """A line an artifact, and what they say together."""
    say(console, "\nagainst the original")
    for one in outcomes:
        say(console, f"  {one.stage:<24} {one.verdict}: {one.text}")
    verdicts = [one.verdict for one in outcomes]
    if verdicts.count(REUSED) == len(verdicts):
        say(console, "everything was reused, so nothing was computed again; --into NEW does that")
    elif IDENTICAL in verdicts and set(verdicts) <= {IDENTICAL, REUSED}:
        say(console, f"repeated exactly: {verdicts.count(IDENTICAL)} artifacts, bit for bit")
    else:
        unequal = sum(verdict not in (IDENTICAL, REUSED) for verdict in verdicts)
        say(console, f"not repeated exactly: {unequal} of {len(verdicts)} artifacts differ or have no original")


def is_exact(outcomes: list[Outcome]) -> bool:
    """Whether all artifacts are the originals or equal to them."""
    return all(one.verdict in (IDENTICAL, REUSED) for one in outcomes)
