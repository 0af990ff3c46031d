"""What each command of `clipworks` does with its parsed options. Functions return the exit code."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from data.errors import RecipeError, UserError
from data.place import Place
from data.specs import FolderPool, IngestSpec, ShardPool
from pipelines.explain import explain
from pipelines.overrides import override
from pipelines.recipe import Recipe, load_recipe, recipe_names
from pipelines.yaml_text import parse_yaml

if TYPE_CHECKING:
    from rich.console import Console

_FILE_WIDTH = 160  # of output that no terminal limits
_FROM_YAML = (".yaml", ".yml", ".json")


def run(options: argparse.Namespace) -> int:
    """Run a recipe here."""
    recipe, place = _recipe(options), _place(options)
    from pipelines.local import run_recipe

    run_recipe(recipe, place, options.name, options.again, _console())
    return 0


def why(options: argparse.Namespace) -> int:
    """Say what was decided about a pair."""
    from pipelines.why import as_text, explain, print_explanation

    found = explain(options.root, options.uid, options.run, options.selection)
    if options.json:
        sys.stdout.write(as_text(found))
    else:
        print_explanation(found, sys.stdout.write, _console().width)
    return 0


def plan(options: argparse.Namespace) -> int:
    """Say what a run would do."""
    recipe, place = _recipe(options), _place(options)
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
    console = _console()
    console.print(table)
    for one in plans:
        if one.problem:
            console.print(f"stages.{one.name}: {one.problem}", markup=False, highlight=False, soft_wrap=True)
    seconds, basis = total_seconds(recipe, plans)
    console.print(f"time: {duration(seconds)}, from {basis}", markup=False, highlight=False, soft_wrap=True)
    return 0


def preflight(options: argparse.Namespace) -> int:
    """Say what of the training fits the place; exit code 2 where something does not."""
    recipe, place = _recipe(options), _place(options)
    from pipelines import ready

    sections = ready.look(recipe, place)
    if options.json:
        sys.stdout.write(json.dumps(ready.as_json(sections), indent=1) + "\n")
    else:
        ready.show(sections, _console())
    return 0 if ready.fits(sections) else UserError.exit_code


def compile_pipeline(options: argparse.Namespace) -> int:
    """Write the IR YAML."""
    recipe, place = _recipe(options), _place(options)
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


def ingest(options: argparse.Namespace) -> int:
    """Make a shard set without a pipeline."""
    spec, place = _ingest_spec(options), _parsed_place({"root": options.root}, "--root")
    from pipelines.alone import run_alone

    run_alone(options.name, spec, place, _console())
    return 0


def verify(options: argparse.Namespace) -> int:
    """Check a shard set."""
    from data.verify import verify as verify_shards

    report = verify_shards(options.folder)
    sys.stdout.write(", ".join(f"{count:,} {what}" for what, count in report.counts.items()) + "\n")
    for problem in report.problems[: options.most]:
        sys.stdout.write(f"{problem.shard}  {problem.member or '-'}  {problem.reason}\n")
    if len(report.problems) > options.most:
        sys.stdout.write(f"... and {len(report.problems) - options.most} more; list them with --most\n")
    return 0 if report.ok else 1


def search(options: argparse.Namespace) -> int:
    """Find pictures by text."""
    from evaluation.search import search as search_pictures

    found = search_pictures(options.checkpoint, " ".join(options.query), top=options.top, sheet=Path(options.output))
    for hit in found:
        sys.stdout.write(f"{hit.similarity:.3f}  {hit.uid}  {hit.caption}\n")
    sys.stdout.write(f"{options.output}\n")
    return 0


def evaluate(options: argparse.Namespace) -> int:
    """Score checkpoints on a suite, or print the recipe that would."""
    from pipelines.evaluating import read_models, root_of, suite_recipe
    from pipelines.suites import load_suite

    suite = load_suite(options.suite, options.data)
    place = _place(options)
    if "root" not in place.model_fields_set:
        place = place.model_copy(update={"root": root_of(options.checkpoint)})
    labels = [label.strip() for label in options.labels.split(",")] if options.labels else []
    recipe = override(suite_recipe(suite, read_models(options.checkpoint, labels, place.root)), options.set)
    if options.dry_run:
        sys.stdout.write(recipe.to_yaml())
        return 0
    from pipelines.local import run_recipe

    console = _console()
    for name, reason in suite.skipped.items():
        console.print(f"skipped {name}: {reason}", markup=False, highlight=False, soft_wrap=True)
    run_recipe(recipe, place, options.name, options.again, console)
    return 0


def examples(options: argparse.Namespace) -> int:
    """List the samples behind a number."""
    from data.artifacts import Artifact, open_artifact
    from evaluation import examples as found_by
    from evaluation.search import resolve

    def opened(uri: str) -> Artifact:
        return open_artifact(resolve(uri, "evaluation"), "evaluation")

    kind = "worse_than" if options.worse_than else "better_than" if options.better_than else options.kind
    against = options.worse_than or options.better_than
    found = found_by.examples(
        opened(options.evaluation), options.task, kind, opened(against) if against else None, options.top,
        options.baseline,
    )  # fmt: skip
    if options.json:
        sys.stdout.write(json.dumps([one._asdict() for one in found], ensure_ascii=False, indent=1) + "\n")
    else:
        for one in found:
            sys.stdout.write(f"{found_by.line(one)}\n")
        sys.stderr.write("" if found else "no such example\n")
    return 0


def suite_list(options: argparse.Namespace) -> int:
    """List the built-in suites."""
    from pipelines.suites import SUITES

    del options
    for name, listed in SUITES.items():
        sys.stdout.write(f"{name:<16} {'--data FOLDER' if listed.needs_data else '':<14} {listed.title}\n")
    return 0


def suite_show(options: argparse.Namespace) -> int:
    """Print a suite."""
    from pipelines.suites import load_suite

    sys.stdout.write(load_suite(options.suite, options.data).to_yaml())
    return 0


def _recipe(options: argparse.Namespace) -> Recipe:
    return override(load_recipe(options.recipe), options.set)


def _place(options: argparse.Namespace) -> Place:
    """The place file's values, `--root` above them."""
    value: Any = parse_yaml(_read(options.place), options.place) or {} if options.place else {}
    if not isinstance(value, dict):
        raise RecipeError(f"--place {options.place}: a place is a mapping, e.g. `root: runs`")
    return _parsed_place({**value, **({"root": options.root} if options.root else {})}, options.place or "--root")


def _parsed_place(value: dict[str, Any], origin: str) -> Place:
    try:
        return Place.model_validate(value)
    except ValidationError as error:
        raise RecipeError(f"{origin}: {explain(error, Place, value)}") from error


def _ingest_spec(options: argparse.Namespace) -> IngestSpec:
    """Tars, pictures with a caption file, or a pool written down in YAML."""
    value: dict[str, Any] = {"pairs_per_shard": options.pairs_per_shard}
    if options.source.endswith(_FROM_YAML):
        value["pool"] = parse_yaml(_read(options.source), options.source)
    elif options.captions:
        columns = {name: getattr(options, name) for name in ("image_column", "caption_column", "uid_column")}
        value["pool"] = FolderPool(images=options.source, captions=options.captions, **columns).model_dump()
    else:
        value["pool"] = ShardPool(url=options.source).model_dump()
    try:
        return IngestSpec.model_validate(value)
    except ValidationError as error:
        raise RecipeError(f"{options.source}: {explain(error, IngestSpec, value)}") from error


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise RecipeError(f"{path}: cannot read: {reason}; give a YAML or JSON file") from error


def _console() -> "Console":
    """A console that keeps to NO_COLOR and to what the output is."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=_FILE_WIDTH)
