"""Commands about recipes: run, plan, preflight, compile, recipe list and show."""

import argparse
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from data.errors import RecipeError, UserError
from data.storage import is_local, local_output
from pipelines.commands.budget import budget_options, keep_to_budget
from pipelines.commands.options import Add, make_console, read_place, read_recipe, recipe_options, set_option
from pipelines.overrides import override
from pipelines.recipe import load_recipe, recipe_names

if TYPE_CHECKING:
    from data.place import Place
    from pipelines.cluster.spec import Cluster

_PLAN_EXAMPLES = """examples:
  clipworks plan quickstart
  clipworks plan mine.yaml --on cluster.yaml --measured runs
  clipworks plan mine.yaml --on cluster.yaml --budget 50 --json

An estimate says what it rests on: runs below the root and the roots of --measured, of the same kind of device.
What is not known stays `?`, and a sum that lacks a part says "at least".
"""
_PREFLIGHT_EXAMPLES = """examples:
  clipworks preflight quickstart
  clipworks preflight mine.yaml --place place.yaml --root s3://bucket/clipworks
  clipworks preflight mine.yaml --set stages.pretrain.phases.pretrain.chunk_pairs=256 --json
"""


def add_commands(add: Add) -> None:
    """Commands about recipes."""
    run_parser = add("run", help="run a recipe on this machine, reusing what is complete")
    recipe_options(run_parser)
    run_parser.add_argument("--name", help="the run's name; default: the recipe's name and the time")
    budget_options(run_parser)
    run_parser.set_defaults(do=run)
    plan_parser = add(
        "plan", help="say per stage: reuse or run, pairs, time, bytes; on a cluster GPU-hours and money too",
        epilog=_PLAN_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    recipe_options(plan_parser)
    plan_parser.add_argument("--on", metavar="CLUSTER", help="YAML file of the cluster it would run on")
    budget_options(plan_parser)
    plan_parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    plan_parser.set_defaults(do=plan)
    preflight_parser = add(
        "preflight", help="say what of a recipe's training does not fit this place; exit 2 if something does not",
        epilog=_PREFLIGHT_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    recipe_options(preflight_parser)
    preflight_parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    preflight_parser.set_defaults(do=preflight)
    compile_ = add("compile", help="write a recipe's Kubeflow pipeline (IR YAML)")
    recipe_options(compile_)
    compile_.add_argument("--on", metavar="CLUSTER", help="YAML file of the cluster whose pods it is for")
    compile_.add_argument("-o", "--output", required=True, metavar="FILE", help=".yaml file to write")
    compile_.set_defaults(do=compile_pipeline)
    recipe = add("recipe", help="list the built-in recipes, or show one as YAML")
    actions = recipe.add_subparsers(dest="action", required=True, metavar="list|show")
    actions.add_parser("list", help="names and titles").set_defaults(do=recipe_list)
    show = actions.add_parser("show", help="the whole recipe as YAML, ready to be edited")
    show.add_argument("recipe", metavar="RECIPE", help="built-in name, or a .yaml or .json file")
    set_option(show)
    show.add_argument("--json", action="store_true", help="print JSON instead")
    show.set_defaults(do=recipe_show)


def run(options: argparse.Namespace) -> int:
    """Run a recipe here."""
    recipe, place = read_recipe(options), read_place(options)
    from pipelines.here.local import run_recipe

    keep_to_budget(options, recipe, place)
    run_recipe(recipe, place, options.name, options.again, make_console())
    return 0


def plan(options: argparse.Namespace) -> int:
    """Say what a run would do and take; exit code 2 where that is above the budget."""
    from pipelines.planning.budget import check_budget, parse_budget
    from pipelines.planning.cost import estimate_run
    from pipelines.planning.plan import make_plan
    from pipelines.planning.text import as_json, show_plan

    recipe, (place, cluster) = read_recipe(options), _where(options)
    budget = options.budget and parse_budget(options.budget, cluster.prices.currency if cluster else None)
    plans = make_plan(recipe, place, options.measured)
    estimate = estimate_run(recipe, plans, place, cluster, options.measured)
    if options.json:
        sys.stdout.write(json.dumps(as_json(estimate), indent=1) + "\n")
    else:
        show_plan(estimate, make_console())
    if budget:
        sys.stdout.flush()
        check_budget(estimate, budget, options.budget_unknown_ok)
    return 0


def _where(options: argparse.Namespace) -> "tuple[Place, Cluster | None]":
    """The cluster's place, or that of this machine.

    Raises:
        RecipeError: both were named.
    """
    if not options.on:
        return read_place(options), None
    from pipelines.cluster.spec import read_cluster

    if options.place or options.root:
        raise RecipeError(f"--on {options.on}: has its own place; leave out --place and --root")
    cluster = read_cluster(options.on)
    return cluster.whole_place(), cluster


def preflight(options: argparse.Namespace) -> int:
    """Say what of the training fits the place; exit code 2 where something does not."""
    recipe, place = read_recipe(options), read_place(options)
    from pipelines.planning import ready

    sections = ready.look(recipe, place)
    if options.json:
        sys.stdout.write(json.dumps(ready.as_json(sections), indent=1) + "\n")
    else:
        ready.show(sections, make_console())
    return 0 if ready.fits(sections) else UserError.exit_code


def compile_pipeline(options: argparse.Namespace) -> int:
    """Write the IR YAML."""
    from pipelines import graph

    recipe, (place, cluster) = read_recipe(options), _where(options)
    with nullcontext(Path(options.output)) if is_local(options.output) else local_output(options.output) as path:
        graph.compile_pipeline(recipe, place, path, cluster)
    sys.stdout.write(f"{options.output}: {len(recipe.stages)} tasks, image {place.image}, root {place.root}\n")
    return 0


def recipe_list(options: argparse.Namespace) -> int:
    """List the built-in recipes."""
    del options
    for name in recipe_names():
        recipe = load_recipe(name)
        minutes = f"{recipe.minutes:g} min" if recipe.minutes else "?"
        sys.stdout.write(f"{name:<22} {minutes:>8}  {recipe.title}\n")
    return 0


def recipe_show(options: argparse.Namespace) -> int:
    """Print a recipe."""
    recipe = override(load_recipe(options.recipe), options.set)
    sys.stdout.write(recipe.to_json() if options.json else recipe.to_yaml())
    return 0
