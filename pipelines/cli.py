"""The `clipworks` command: which recipe, which values changed, where to run. Everything else is a field of the recipe.

Nothing heavy is imported before it is needed: help, plan and an error in a recipe answer at once.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module

from data.errors import UserError
from pipelines.commands import FAMILIES

_EXAMPLES = """examples:
  clipworks run quickstart                          real pairs to an evaluated CLIP on this machine
  clipworks run quickstart --set stages.pretrain.seed=1
  clipworks recipe show quickstart > mine.yaml      then edit it, and: clipworks run mine.yaml
  clipworks plan mine.yaml                          what would be reused, what would run, for how long
  clipworks preflight mine.yaml --place place.yaml  what of the training does not fit there, and what would
  clipworks compile mine.yaml -o pipeline.yaml      the same graph for a Kubeflow cluster
  clipworks submit mine.yaml --on cluster.yaml --wait
  clipworks ingest my/pictures --captions my/captions.csv --root runs
  clipworks verify runs/pairs-0123456789ab
  clipworks why 1f600-Goog --root runs                which decisions about a pair, by what, and who trained on it
  clipworks search runs/pretrain-0123456789ab "red apple"
  clipworks sweep --example > sweep.yaml            then edit it, and: clipworks sweep sweep.yaml
  clipworks evaluate runs/pretrain-0123456789ab runs/refine-0123456789ab --suite bundled
  clipworks evaluate ViT-B-32:laion2b_s34b_b79k --suite datacomp --data my/evalsets
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code: 0, 1 (our fault, or problems found), 2 (yours), 130 (interrupted)."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = make_parser().parse_args(arguments)
    try:
        options.again = ["clipworks", *arguments]
        do: Callable[[argparse.Namespace], int] = options.do
        return do(options)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `clipworks recipe show x | head`
        return 0
    except Exception:  # noqa: BLE001 - the last door: a defect of ours, shown whole
        traceback.print_exc()
        return 1


def make_parser() -> argparse.ArgumentParser:
    """All commands, with their help."""
    parser = argparse.ArgumentParser(
        prog="clipworks", epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="From a pool of image-text pairs to a better, honestly evaluated CLIP.",
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"clipworks {_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for family in FAMILIES:
        import_module(f"pipelines.commands.{family}").add_commands(commands.add_parser)
    return parser


def _version() -> str:
    from importlib import metadata

    return metadata.version("clipworks")
