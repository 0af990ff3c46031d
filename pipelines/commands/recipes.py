"""Commands about recipes: run, plan, preflight, compile, recipe list and show."""

import argparse
import json
import sys
from pathlib import Path

from data.errors import UserError
from pipelines.commands.options import Add, make_console, read_place, read_recipe, recipe_options, set_option
from pipelines.overrides import override
from pipelines.recipe import load_recipe, recipe_names

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
    run_parser.set_defaults(do=run)
    plan_parser = add("plan", help="say per stage: reuse or run, pairs, estimated time")
    recipe_options(plan_parser)
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
    from pipelines.local import run_recipe

    run_recipe(recipe, place, options.name, options.again, make_console())
    return 0


def plan(options: argparse.Namespace) -> int:
    """Say what a run would do."""
    recipe, place = read_recipe(options), read_place(options)
    from pipelines.plan import duration, make_plan, plan_rows, total_seconds

    plans = make_plan(recipe, place)
    if options.json:
        sys.stdout.write(json.dumps(plan_rows(plans), indent=1) + "\n")
        return 0
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("stage", "kind", "do", "artifact", "pairs", "time"):
        table.add_column(heading, justify="right" if heading in ("pairs", "time") else "left", overflow="fold")
    for row in plan_rows(plans):
        pairs = "?" if row["pairs"] is None else f"{row['pairs']:,}"
        time = "-" if row["do"] == "reuse" else duration(row["seconds"])
        table.add_row(row["stage"], row["kind"], row["do"], row["artifact"] or "?", pairs, time)
    console = make_console()
    console.print(table)
    for one in plans:
        if one.problem:
            console.print(f"stages.{one.name}: {one.problem}", markup=False, highlight=False, soft_wrap=True)
    seconds, basis = total_seconds(recipe, plans)
    console.print(f"time: {duration(seconds)}, from {basis}", markup=False, highlight=False, soft_wrap=True)
    return 0


def preflight(options: argparse.Namespace) -> int:
    """Say what of the training fits the place; exit code 2 where something does not."""
    recipe, place = read_recipe(options), read_place(options)
    from pipelines import ready

    sections = ready.look(recipe, place)
    if options.json:
        sys.stdout.write(json.dumps(ready.as_json(sections), indent=1) + "\n")
    else:
        ready.show(sections, make_console())
    return 0 if ready.fits(sections) else UserError.exit_code


def compile_pipeline(options: argparse.Namespace) -> int:
    """Write the IR YAML."""
    recipe, place = read_recipe(options), read_place(options)
    from pipelines import graph

    graph.compile_pipeline(recipe, place, Path(options.output))
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
