"""Commands about runs: runs list, show, diff, rerun, report, and sync."""

import argparse
import json
import sys

from pipelines.commands.options import Add, make_console, parse_place, read_text
from pipelines.yaml_text import parse_yaml

_EXAMPLES = """examples:
  clipworks runs list --root s3://bucket/clipworks
  clipworks runs show monday                       stages, numbers, and where logs and pages lie
  clipworks runs show monday --recipe > mine.yaml  the recipe that it ran
  clipworks runs diff monday tuesday               the fields and numbers that differ, and nothing else
  clipworks runs rerun monday --root runs --into again     computes everything again and compares it bit for bit
  clipworks runs report --root runs -o runs.html   one page over all runs
"""


def add_commands(add: Add) -> None:
    """Commands about runs."""
    runs = add(
        "runs", help="list, show, compare and repeat runs, or write one page over many",
        epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    actions = runs.add_subparsers(dest="action", required=True, metavar="list|show|diff|rerun|report")
    list_ = _action(actions.add_parser("list", help="a line a run, newest first"), runs_list)
    list_.add_argument("--group", help="only the trials of this sweep")
    show = _action(actions.add_parser("show", help="everything of one run"), runs_show)
    show.add_argument("run", metavar="RUN", help="its name")
    show.add_argument("--recipe", action="store_true", help="print the recipe it ran, as YAML that `run` accepts")
    diff = _action(actions.add_parser("diff", help="what differs between two runs, and only that"), runs_diff)
    diff.add_argument("run", metavar="A", help="name of a run")
    diff.add_argument("other", metavar="B", help="name of another run")
    diff.add_argument("--all", action="store_true", help="every metric, not just the main one of each task")
    _add_rerun(actions.add_parser("rerun", help="repeat a run exactly, or say what is missing"))
    report = actions.add_parser("report", help="one self-contained HTML page over many runs")
    report.add_argument("run", metavar="RUN", nargs="*", help="names; default: all runs below the root")
    report.add_argument("-o", "--output", metavar="FILE", help="default: runs.html below the root")
    report.add_argument("--title", default="Runs", help="heading of the page")
    report.add_argument("--group", help="only the trials of this sweep")
    _root(report)
    report.set_defaults(do=runs_report)
    sync = add("sync", help="send offline W&B runs to a W&B server")
    sync.add_argument("run", metavar="RUN", nargs="?", help="only the stages of this run; default: of all runs")
    _root(sync)
    sync.set_defaults(do=runs_sync)


def _action(parser: argparse.ArgumentParser, do: object) -> argparse.ArgumentParser:
    _root(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(do=do)
    return parser


def _root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", default="runs", help="folder or s3:// prefix of all artifacts; default: `runs`")


def _add_rerun(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="its name")
    _root(parser)
    parser.add_argument("--into", metavar="ROOT", help="compute everything again below this root; default: reuse")
    parser.add_argument("--place", metavar="FILE", help="where to run it; default: as it ran")
    parser.add_argument("--name", help="the new run's name; default: the old one's and `-again`")
    parser.add_argument("--anyway", action="store_true", help="run although something differs")
    parser.add_argument("--dry-run", action="store_true", help="only say whether it can be repeated")
    parser.set_defaults(do=runs_rerun)


def _print(value: object) -> int:
    sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
    return 0


def runs_list(options: argparse.Namespace) -> int:
    """List the runs below a root."""
    from pipelines.review import listing as review
    from pipelines.review import text as review_text

    runs, unreadable = review.see(options.root)
    runs = [seen for seen in runs if options.group in (None, seen.record.group)]
    if options.json:
        broken = [{"name": one.name, "state": "unreadable", "note": one.reason} for one in unreadable]
        return _print([*map(review.summary_of, runs), *broken])
    review_text.show_list(runs, unreadable, make_console(), options.root)
    return 0


def runs_show(options: argparse.Namespace) -> int:
    """Show one run."""
    from pipelines.recipe import parse_recipe
    from pipelines.review import listing as review
    from pipelines.review import text as review_text
    from pipelines.review.files import files_of
    from pipelines.runs import read_run

    record = read_run(options.root, options.run)
    if options.recipe:
        sys.stdout.write(parse_recipe(record.recipe, f"run {options.run}").to_yaml())
        return 0
    seen = review.Seen(options.root, record)
    files = files_of(seen)
    if options.json:
        return _print({**review.summary_of(seen), "record": record.model_dump(mode="json"), "files": files})
    review_text.show_run(seen, files, make_console())
    return 0


def runs_diff(options: argparse.Namespace) -> int:
    """Say what differs between two runs."""
    from pipelines.review import diff as review_diff
    from pipelines.review import listing as review
    from pipelines.runs import read_run

    ours, theirs = (review.Seen(options.root, read_run(options.root, name)) for name in (options.run, options.other))
    found = review_diff.diff_runs(ours, theirs, options.all)
    if options.json:
        return _print(review_diff.as_json(found))
    review_diff.show(found, (options.run, options.other), make_console())
    return 0


def runs_rerun(options: argparse.Namespace) -> int:
    """Repeat a run; exit code 1 where what came out differs from the original."""
    from pipelines.review import rerun

    value = parse_yaml(read_text(options.place), options.place) or {} if options.place else None
    place = None if value is None else parse_place(value, options.place)
    made = rerun.prepare(options.root, options.run, options.into, place)
    console = make_console()
    if not options.anyway or options.dry_run:
        rerun.refuse(made, console)
    if options.dry_run:
        console.print(f"run {options.run} can be repeated exactly", markup=False, highlight=False)
        return 0
    from pipelines.here.local import run_recipe

    run_recipe(made.recipe, made.place, options.name or f"{options.run}-again", options.again, console)
    outcomes = rerun.compare(made, options.root)
    rerun.show(outcomes, console)
    return 0 if rerun.is_exact(outcomes) else 1


def runs_report(options: argparse.Namespace) -> int:
    """Write one page over many runs."""
    from data import storage
    from pipelines.review import page as review_page

    output = options.output or storage.join(storage.normalise(options.root), "runs.html")
    page, count = review_page.make_page(options.root, options.run, options.group, options.title, output)
    storage.write_bytes(output, page.encode())
    sys.stdout.write(f"{count} runs: {output}\n")
    return 0


def runs_sync(options: argparse.Namespace) -> int:
    """Send offline W&B runs to a server; exit code 1 where some did not arrive."""
    from pipelines.here.workspace import wandb_folder
    from pipelines.review import sync

    return 1 if sync.sync(wandb_folder(options.root), options.run, lambda line: print(line, flush=True)) else 0  # noqa: T201
