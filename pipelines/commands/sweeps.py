"""Commands about sweeps: sweep."""

import argparse
import sys
from pathlib import Path

from data.errors import RecipeError
from pipelines.commands.options import Add, make_console, place_options, read_place, read_text

_EXAMPLES = """a sweep file names a recipe, the fields that are searched, the number that chooses (a validation loss,
or a metric on a split that no report judges by), how trials are stopped (asha) or bred (pbt), and what each one has.
A killed sweep goes on with the same command. Results: ROOT/.sweeps/NAME/ (winner.yaml, sweep.json, sweep.html).

examples:
  clipworks sweep --example > sweep.yaml     8 trials of the tiny recipe, with comments
  clipworks sweep sweep.yaml --dry-run       what would be tried
  clipworks sweep sweep.yaml --root runs
  clipworks run runs/.sweeps/sweep/winner.yaml
"""


def add_commands(add: Add) -> None:
    """Commands about sweeps."""
    sweep_parser = add(
        "sweep", help="try many values of a recipe's fields on Ray Tune; the best becomes a recipe file",
        epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    sweep_parser.add_argument("sweep", nargs="?", metavar="SWEEP", help=".yaml or .json file")
    place_options(sweep_parser, "default: the place's, else `runs`")
    sweep_parser.add_argument("--name", help="the sweep's name; default: its file's. The same name goes on with it")
    sweep_parser.add_argument("--dry-run", action="store_true", help="print the trials and run nothing")
    sweep_parser.add_argument("--example", action="store_true", help="print a sweep file to start from")
    sweep_parser.set_defaults(do=sweep)


def sweep(options: argparse.Namespace) -> int:
    """Run a sweep, or print what it would try."""
    from pipelines.sweeps.spec import EXAMPLE, parse_sweep
    from pipelines.sweeps.study import make_study

    if options.example:
        sys.stdout.write(EXAMPLE)
        return 0
    if options.sweep is None:
        raise RecipeError("SWEEP: missing; give a sweep file, e.g. of: clipworks sweep --example > sweep.yaml")
    study = make_study(parse_sweep(read_text(options.sweep), options.sweep))
    place = read_place(options)
    if options.dry_run:
        from pipelines.sweeps.result import labels, shown

        names = labels(list(study.sweep.space))
        for number, values in enumerate(study.settings):
            said = "  ".join(f"{names[path]} {shown(value)}" for path, value in values.items())
            sys.stdout.write(f"trial {number:<4} {said}{'  (the recipe)' if number == 0 else ''}\n")
        return 0
    from pipelines.sweeps.running import run_sweep

    run_sweep(study, place, options.name or Path(options.sweep).stem, options.again, make_console())
    return 0
