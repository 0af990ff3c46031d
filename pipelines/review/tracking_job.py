"""What the process that writes to W&B is to follow: all stages of a run, and what they share (training/tracking.py)."""

import time
from typing import Any

from data import storage
from data.place import Place
from pipelines.here.workspace import Workspace
from pipelines.planning.plan import StagePlan
from pipelines.recipe import Recipe
from pipelines.runs import versions


def tracking_job(recipe: Recipe, place: Place, workspace: Workspace, plans: list[StagePlan]) -> dict[str, Any]:
    """The file that `python -m training.tracking` reads."""
    where = {
        "mode": place.wandb_mode,
        "project": place.wandb_project,
        "group": workspace.run,
        "folder": str(workspace.wandb),
        "since": time.time(),
        "shared": {"recipe": recipe.to_dict(), "place": place.model_dump(mode="json"), "versions": versions()},
    }
    prints = {plan.name: plan.fingerprint for plan in plans}
    return {"where": where, "stages": [_tracked(plan, prints, place) for plan in plans]}


def _tracked(plan: StagePlan, prints: dict[str, str | None], place: Place) -> dict[str, Any]:
    return {
        "stage": plan.name,
        "kind": plan.kind,
        "config": plan.spec.model_dump(mode="json"),
        "events_uri": plan.events_uri(storage.normalise(place.root)),
        "fingerprint": plan.fingerprint,
        "parents": {role: prints[stage] for role, (stage, _) in plan.spec.roles().items()},
        "artifact": plan.artifact.uri if plan.artifact else "",
    }
