"""Runs a method's experiment on this machine as one recipe and leaves its card; run again, it goes on."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from data import storage
from data.artifacts import Artifact
from data.place import Place
from pipelines.methods.method import Experiment, Method, MethodError
from pipelines.recipe import Recipe
from pipelines.reproduction.card import Card, write_card
from pipelines.reproduction.checks import make_experiment

if TYPE_CHECKING:
    from rich.console import Console

CARDS = "docs/methods"


def recipe_of(method: Method, experiment: Experiment) -> Recipe:
    """All arms and seeds as one recipe."""
    count = f"{len(experiment.arms)} arms, {experiment.seeds} seeds"
    return Recipe(
        name=f"reproduce-{method.name}",
        title=f"{method.title}: the claim put to the test ({count})",
        purpose=method.claim,
        hardware="2 CPU cores",
        expect="A card that says whether the effect is there at this scale, and whether it is the method's own.",
        stages=experiment.stages,
    )


def default_folder(root: str) -> str:
    """Where cards go: `docs/methods` below the working directory where it is there, else below the root."""
    return CARDS if Path(CARDS).is_dir() else storage.join(storage.normalise(root), "methods")


def reproduce(
    method: Method, seeds: int, place: Place, folder: str, again: list[str], console: "Console"
) -> tuple[Card, list[str]]:
    """Run the experiment, reuse what is complete, write `NAME.json` and `NAME.html`; the card and where it lies.

    Raises:
        MethodError: the experiment does not fit together; nothing has run.
        StageError: a stage failed; no card is written, and an older one stays.
    """
    from pipelines.here.local import run_recipe
    from pipelines.planning.plan import make_plan
    from pipelines.reproduction.making import make_card
    from pipelines.reproduction.page import render
    from pipelines.runs import versions

    experiment = make_experiment(method, seeds)
    recipe = recipe_of(method, experiment)
    run_recipe(recipe, place, None, again, console)
    artifacts: dict[str, Artifact] = {}
    for plan in make_plan(recipe, place):
        if plan.artifact is None:
            raise MethodError(f"stage {plan.name}: its artifact was removed meanwhile; continue: {shlex.join(again)}")
        artifacts[plan.name] = plan.artifact
    command = f"clipworks reproduce {method.name} --seeds {seeds}"  # without what names this machine
    card = make_card(method, experiment, artifacts, command, versions())
    paths = [storage.join(folder, f"{method.name}.{kind}") for kind in ("html", "json")]
    storage.write_bytes(paths[0], render(method, card).encode())
    write_card(paths[1], card)  # last: who finds it finds the page too
    return card, paths
