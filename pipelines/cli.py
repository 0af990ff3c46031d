"""The `clipworks` command: which recipe, which values changed, where to run. Everything else is a field of the recipe.

Nothing heavy is imported before it is needed: help, plan and an error in a recipe answer at once.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from data.errors import UserError

_EXAMPLES = """examples:
  clipworks run quickstart                          real pairs to an evaluated CLIP on this machine
  clipworks run quickstart --set stages.pretrain.seed=1
  clipworks recipe show quickstart > mine.yaml      then edit it, and: clipworks run mine.yaml
  clipworks plan mine.yaml                          what would be reused, what would run, for how long
  clipworks preflight mine.yaml --place place.yaml  what of the training does not fit there, and what would
  clipworks compile mine.yaml -o pipeline.yaml      the same graph for a Kubeflow cluster
  clipworks ingest my/pictures --captions my/captions.csv --root runs
  clipworks verify runs/pairs-0123456789ab
  clipworks why 1f600-Goog --root runs                which decisions about a pair, by what, and who trained on it
  clipworks search runs/pretrain-0123456789ab "red apple"
  clipworks evaluate runs/pretrain-0123456789ab runs/refine-0123456789ab --suite bundled
  clipworks evaluate ViT-B-32:laion2b_s34b_b79k --suite datacomp --data my/evalsets
"""
_PREFLIGHT_EXAMPLES = """examples:
  clipworks preflight quickstart
  clipworks preflight mine.yaml --place place.yaml --root s3://bucket/clipworks
  clipworks preflight mine.yaml --set stages.pretrain.phases.pretrain.chunk_pairs=256 --json
"""
_EXAMPLES_EXAMPLES = """examples:
  clipworks examples runs/evaluate_pretrained-0123456789ab emoji/unseen_vendor/groups --wrong
  clipworks examples runs/evaluate_refined-0123456789ab emoji/unseen_vendor/retrieval/image_to_text \\
      --worse-than runs/evaluate_pretrained-0123456789ab
"""
_EVALUATE_EXAMPLES = """a checkpoint is
  a folder that a run made (runs/pretrain-0123456789ab): below its root lies what it was trained on, so that the
    evaluation refuses pairs and counts pictures that it has seen; from another root this is not checked, and said
  any folder in open_clip's local-dir layout
  ARCH:TAG, open_clip's own weights (needs a hub), or ARCH:FILE.safetensors

examples:
  clipworks evaluate runs/init-0123456789ab runs/pretrain-0123456789ab --suite bundled
  clipworks evaluate my/vit-b-32 ViT-B-32:laion2b_s34b_b79k --suite datacomp --data my/evalsets --labels mine,laion
  clipworks evaluate runs/pretrain-0123456789ab --suite retrieval --data https://host/wds_sets.txt
  clipworks suite show bundled > mine.yaml          then edit it, and: clipworks evaluate ... --suite mine.yaml
"""
_Add = Callable[..., argparse.ArgumentParser]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code: 0, 1 (our fault, or problems found), 2 (yours), 130 (interrupted)."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = make_parser().parse_args(arguments)
    try:
        options.again = ["clipworks", *arguments]
        return _do(options)
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


def _do(options: argparse.Namespace) -> int:
    from pipelines import commands

    do: Callable[[argparse.Namespace], int] = getattr(commands, options.do)
    return do(options)


def make_parser() -> argparse.ArgumentParser:
    """All commands, with their help."""
    parser = argparse.ArgumentParser(
        prog="clipworks", epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="From a pool of image-text pairs to a better, honestly evaluated CLIP.",
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"clipworks {_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_recipe_commands(commands.add_parser)
    _add_pair_commands(commands.add_parser)
    _add_evaluation_commands(commands.add_parser)
    return parser


def _version() -> str:
    from importlib import metadata

    return metadata.version("clipworks")


def _add_recipe_commands(add: _Add) -> None:
    run = add("run", help="run a recipe on this machine, reusing what is complete")
    _recipe_options(run)
    run.add_argument("--name", help="the run's name; default: the recipe's name and the time")
    run.set_defaults(do="run")
    plan = add("plan", help="say per stage: reuse or run, pairs, estimated time")
    _recipe_options(plan)
    plan.add_argument("--json", action="store_true", help="print the plan as JSON")
    plan.set_defaults(do="plan")
    preflight = add(
        "preflight", help="say what of a recipe's training does not fit this place; exit 2 if something does not",
        epilog=_PREFLIGHT_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    _recipe_options(preflight)
    preflight.add_argument("--json", action="store_true", help="print the findings as JSON")
    preflight.set_defaults(do="preflight")
    compile_ = add("compile", help="write a recipe's Kubeflow pipeline (IR YAML)")
    _recipe_options(compile_)
    compile_.add_argument("-o", "--output", required=True, metavar="FILE", help=".yaml file to write")
    compile_.set_defaults(do="compile_pipeline")
    recipe = add("recipe", help="list the built-in recipes, or show one as YAML")
    actions = recipe.add_subparsers(dest="action", required=True, metavar="list|show")
    actions.add_parser("list", help="names and titles").set_defaults(do="recipe_list")
    show = actions.add_parser("show", help="the whole recipe as YAML, ready to be edited")
    show.add_argument("recipe", metavar="RECIPE", help="built-in name, or a .yaml or .json file")
    _set_option(show)
    show.add_argument("--json", action="store_true", help="print JSON instead")
    show.set_defaults(do="recipe_show")


def _recipe_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="built-in name, or a .yaml or .json file")
    _set_option(parser)
    _place_options(parser, "default: the place's, else `runs`")


def _place_options(parser: argparse.ArgumentParser, default_root: str) -> None:
    parser.add_argument(
        "--place", metavar="FILE", help="YAML file that says where to run (data/place.py has the fields)"
    )
    parser.add_argument("--root", help=f"folder or s3:// prefix of all artifacts; {default_root}")


def _set_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="change one value; repeatable")


def _add_pair_commands(add: _Add) -> None:
    ingest = add("ingest", help="make a shard set from pictures and captions, or from WebDataset tars")
    ingest.add_argument("source", help="folder or URL of .tar files, folder of pictures, or a .yaml file with a pool")
    ingest.add_argument(
        "--captions", metavar="FILE", help=".csv, .tsv, .parquet or .jsonl file, for a folder of pictures"
    )
    ingest.add_argument("--image-column", default="image", help="column with the picture's path (default: image)")
    ingest.add_argument("--caption-column", default="caption", help="column with the caption (default: caption)")
    ingest.add_argument("--uid-column", help="column with a stable id; default: a hash of the picture's path")
    ingest.add_argument("--pairs-per-shard", type=int, default=4096, help="default: 4096")
    ingest.add_argument("--root", default="runs", help="folder or s3:// prefix of all artifacts (default: runs)")
    ingest.add_argument("--name", default="pairs", help="what the artifact is called before its fingerprint")
    ingest.set_defaults(do="ingest")
    verify = add("verify", help="check a shard set or a folder of tars byte for byte; exit 1 if something is wrong")
    verify.add_argument("folder", help="a shard set, or a folder of .tar files")
    verify.add_argument("--most", type=int, default=20, help="list at most so many problems (default: 20)")
    verify.set_defaults(do="verify")
    why = add("why", help="say why a pair was kept or dropped, and what was trained on it")
    why.add_argument("uid", help="the pair's uid")
    why.add_argument("--run", help="look only at the artifacts of this run")
    why.add_argument("--selection", metavar="FOLDER", help="explain by this selection only")
    why.add_argument("--root", default="runs", help="folder or s3:// prefix of all artifacts (default: runs)")
    why.add_argument("--json", action="store_true", help="print JSON")
    why.set_defaults(do="why")
    search = add("search", help="find the pictures that fit a text best, with a trained checkpoint")
    search.add_argument("checkpoint", help="folder of a checkpoint artifact")
    search.add_argument("query", nargs="+", help="text to search for")
    search.add_argument("--top", type=int, default=12, help="how many pictures (default: 12)")
    search.add_argument(
        "-o", "--output", metavar="FILE", default="search.png", help="contact sheet (default: search.png)"
    )
    search.set_defaults(do="search")


def _add_evaluation_commands(add: _Add) -> None:
    evaluate = add(
        "evaluate", help="score any checkpoints on a suite, reusing features that exist; one report compares them",
        epilog=_EVALUATE_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    evaluate.add_argument(
        "checkpoint", nargs="+", metavar="CHECKPOINT", help="what to score; the first is compared with"
    )
    evaluate.add_argument("--suite", required=True, help="built-in name (`clipworks suite list`), or a .yaml file")
    evaluate.add_argument("--data", metavar="FOLDER", help="where its data sets lie, if it does not bring its own")
    evaluate.add_argument("--labels", metavar="A,B", help="what the report calls them; default: their folders' names")
    _set_option(evaluate)
    _place_options(evaluate, "default: the checkpoint's own, else the place's, else `runs`")
    evaluate.add_argument("--name", help="the run's name; default: the suite's name and the time")
    evaluate.add_argument("--dry-run", action="store_true", help="print the recipe as YAML and run nothing")
    evaluate.set_defaults(do="evaluate")
    examples = add(
        "examples", help="list the samples behind a number of an evaluation: wrong, right, tied or dropped ones",
        epilog=_EXAMPLES_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    examples.add_argument("evaluation", help="folder of an evaluation artifact")
    examples.add_argument("task", metavar="SET/SPLIT/TASK", help="as the report calls it; /DIRECTION where it has two")
    kind = examples.add_mutually_exclusive_group()
    for name, text in (
        ("wrong", "the most confident mistakes first, else those whose right answer ranks last (default)"),
        ("right", "in no order"), ("ties", "a wrong candidate scores the same"), ("dropped", "with the reason"),
    ):  # fmt: skip
        kind.add_argument(f"--{name}", dest="kind", action="store_const", const=name, help=text)
    kind.add_argument("--worse-than", metavar="EVALUATION", help="wrong here, right in this other evaluation")
    kind.add_argument("--better-than", metavar="EVALUATION", help="right here, wrong in this other evaluation")
    examples.add_argument("--baseline", default="", metavar="NAME", help="of what stands beside it, e.g. majority")
    examples.add_argument("--top", type=int, default=12, help="how many (default: 12)")
    examples.add_argument("--json", action="store_true", help="print JSON")
    examples.set_defaults(do="examples", kind="wrong")
    suite = add("suite", help="list the suites, or show one as YAML")
    actions = suite.add_subparsers(dest="action", required=True, metavar="list|show")
    actions.add_parser("list", help="names and titles").set_defaults(do="suite_list")
    show = actions.add_parser("show", help="the whole suite as YAML, ready to be edited")
    show.add_argument("suite", metavar="SUITE", help="built-in name, or a .yaml file")
    show.add_argument("--data", metavar="FOLDER", help="where its data sets lie, if it does not bring its own")
    show.set_defaults(do="suite_show")
