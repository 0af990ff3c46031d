"""Commands about evaluations: evaluate, examples, suite list and show."""

import argparse
import json
import sys

from pipelines.commands.options import Add, make_console, place_options, read_place, set_option
from pipelines.overrides import override

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


def add_commands(add: Add) -> None:
    """Commands about evaluations."""
    evaluate_parser = add(
        "evaluate", help="score any checkpoints on a suite, reusing features that exist; one report compares them",
        epilog=_EVALUATE_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    evaluate_parser.add_argument(
        "checkpoint", nargs="+", metavar="CHECKPOINT", help="what to score; the first is compared with"
    )
    evaluate_parser.add_argument(
        "--suite", required=True, help="built-in name (`clipworks suite list`), or a .yaml file"
    )
    evaluate_parser.add_argument(
        "--data", metavar="FOLDER", help="where its data sets lie, if it does not bring its own"
    )
    evaluate_parser.add_argument(
        "--labels", metavar="A,B", help="what the report calls them; default: their folders' names"
    )
    set_option(evaluate_parser)
    place_options(evaluate_parser, "default: the checkpoint's own, else the place's, else `runs`")
    evaluate_parser.add_argument("--name", help="the run's name; default: the suite's name and the time")
    evaluate_parser.add_argument("--dry-run", action="store_true", help="print the recipe as YAML and run nothing")
    evaluate_parser.set_defaults(do=evaluate)
    examples_parser = add(
        "examples", help="list the samples behind a number of an evaluation: wrong, right, tied or dropped ones",
        epilog=_EXAMPLES_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    examples_parser.add_argument("evaluation", help="folder of an evaluation artifact")
    examples_parser.add_argument(
        "task", metavar="SET/SPLIT/TASK", help="as the report calls it; /DIRECTION where it has two"
    )
    kind = examples_parser.add_mutually_exclusive_group()
    for name, text in (
        ("wrong", "the most confident mistakes first, else those whose right answer ranks last (default)"),
        ("right", "in no order"), ("ties", "a wrong candidate scores the same"), ("dropped", "with the reason"),
    ):  # fmt: skip
        kind.add_argument(f"--{name}", dest="kind", action="store_const", const=name, help=text)
    kind.add_argument("--worse-than", metavar="EVALUATION", help="wrong here, right in this other evaluation")
    kind.add_argument("--better-than", metavar="EVALUATION", help="right here, wrong in this other evaluation")
    examples_parser.add_argument(
        "--baseline", default="", metavar="NAME", help="of what stands beside it, e.g. majority"
    )
    examples_parser.add_argument("--top", type=int, default=12, help="how many (default: 12)")
    examples_parser.add_argument("--json", action="store_true", help="print JSON")
    examples_parser.set_defaults(do=examples, kind="wrong")
    suite = add("suite", help="list the suites, or show one as YAML")
    actions = suite.add_subparsers(dest="action", required=True, metavar="list|show")
    actions.add_parser("list", help="names and titles").set_defaults(do=suite_list)
    show = actions.add_parser("show", help="the whole suite as YAML, ready to be edited")
    show.add_argument("suite", metavar="SUITE", help="built-in name, or a .yaml file")
    show.add_argument("--data", metavar="FOLDER", help="where its data sets lie, if it does not bring its own")
    show.set_defaults(do=suite_show)


def evaluate(options: argparse.Namespace) -> int:
    """Score checkpoints on a suite, or print the recipe that would."""
    from pipelines.evaluating import read_models, root_of, suite_recipe
    from pipelines.suites import load_suite

    suite = load_suite(options.suite, options.data)
    place = read_place(options)
    if "root" not in place.model_fields_set:
        place = place.model_copy(update={"root": root_of(options.checkpoint)})
    labels = [label.strip() for label in options.labels.split(",")] if options.labels else []
    recipe = override(suite_recipe(suite, read_models(options.checkpoint, labels, place.root)), options.set)
    if options.dry_run:
        sys.stdout.write(recipe.to_yaml())
        return 0
    from pipelines.here.local import run_recipe

    console = make_console()
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
