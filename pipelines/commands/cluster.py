"""Commands about a cluster, and about runs wherever they are: submit, status, logs, retry, cancel."""

import argparse
import json
import shlex
import sys
import time
from typing import TYPE_CHECKING

from data import storage
from data.errors import RecipeError
from data.place import Place
from pipelines.cluster.spec import Cluster, read_cluster
from pipelines.commands.budget import budget_options, keep_to_budget
from pipelines.commands.options import Add, make_console, read_recipe, set_option
from pipelines.runs import RunRecord, read_run, run_names, write_run

if TYPE_CHECKING:
    from pipelines.cluster.kfp_api import KfpApi
    from pipelines.cluster.submit import Order

_POLL_SECONDS = 5.0
_EXAMPLES = """examples:
  clipworks submit tiny --on cluster.yaml --wait
  clipworks submit mine.yaml --on cluster.yaml --set stages.pretrain.seed=1 --name seed-1
  clipworks status seed-1 --on cluster.yaml --watch
"""


def add_commands(add: Add) -> None:
    """Commands about a cluster."""
    submit_parser = add(
        "submit", help="run a recipe on a cluster: what is missing there, as one Kubeflow pipeline",
        epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    submit_parser.add_argument("recipe", metavar="RECIPE", help="built-in name, or a .yaml or .json file")
    set_option(submit_parser)
    submit_parser.add_argument("--on", required=True, metavar="CLUSTER", help="YAML file of the cluster")
    submit_parser.add_argument("--name", help="the run's name; default: the recipe's name and the time")
    _code_option(submit_parser)
    budget_options(submit_parser)
    submit_parser.add_argument("--wait", action="store_true", help="follow it to its end; Ctrl-C leaves it running")
    submit_parser.set_defaults(do=submit)
    status_parser = _run_command(add, "status", "how a run stands, stage by stage; without RUN, every run", "?")
    status_parser.add_argument("--watch", action="store_true", help="follow it to its end; Ctrl-C leaves it running")
    status_parser.add_argument("--json", action="store_true", help="print JSON")
    status_parser.set_defaults(do=status)
    logs_parser = _run_command(add, "logs", "what a run's stages wrote: their pods, or the log of this machine")
    logs_parser.add_argument("--stage", metavar="S", help="only this stage")
    logs_parser.add_argument("--follow", action="store_true", help="go on until the run ends")
    logs_parser.set_defaults(do=logs)
    retry_parser = _run_command(add, "retry", "run again what of a run is missing, and nothing else")
    retry_parser.add_argument("--stage", metavar="S", help="only this stage, whose parents are complete")
    _code_option(retry_parser)
    retry_parser.add_argument("--wait", action="store_true", help="follow it to its end; Ctrl-C leaves it running")
    retry_parser.set_defaults(do=retry)
    cancel_parser = _run_command(add, "cancel", "end a run of a cluster, and the RayJobs that it left")
    cancel_parser.set_defaults(do=cancel)


def _code_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--code", nargs="?", const="", metavar="CHECKOUT",
        help="run the packages of this checkout (default: the one that this command runs from) in place of the image's",
    )  # fmt: skip


def _run_command(add: Add, name: str, what: str, nargs: str | None = None) -> argparse.ArgumentParser:
    parser = add(name, help=what)
    parser.add_argument("run", metavar="RUN", nargs=nargs, help="the run's name")
    parser.add_argument("--on", metavar="CLUSTER", help="YAML file of the cluster it was submitted to")
    parser.add_argument("--root", help="folder or s3:// prefix of all artifacts; default: the cluster's, else `runs`")
    return parser


def submit(options: argparse.Namespace) -> int:
    """Hand a recipe in; with `--wait`, follow it."""
    from pipelines.cluster.kfp_api import KfpApi
    from pipelines.cluster.submit import make_order

    recipe, cluster = read_recipe(options), read_cluster(options.on)
    order = make_order(recipe, cluster, options.name, options.again)
    if not order.to_run:
        sys.stdout.write(f"{recipe.title}: all {len(order.plans)} stages are complete in {order.place.root}\n")
        return 0
    keep_to_budget(options, recipe, order.place, cluster, order.plans)
    api = KfpApi(cluster.kfp)
    _refuse_running(order.place.root, order.run, api)
    return _hand_in(order, api, options)


def _hand_in(order: "Order", api: "KfpApi", options: argparse.Namespace) -> int:
    from pipelines.cluster.follow import how_to_follow
    from pipelines.cluster.submit import hand_in, with_code

    if options.code is not None:
        order = with_code(order, options.code)
        sys.stdout.write(f"code: {order.place.code} in place of the image's packages\n")
    record = hand_in(order, api)
    assert record.submission
    missing, whole = len(order.to_run), len(order.plans)
    count = (
        f"{missing} of {whole} stages to run, the others are reused" if missing < whole else f"{whole} stages to run"
    )
    try:
        sys.stdout.write(f"{record.name}: handed in to {order.cluster.name}: {count}\n")
        sys.stdout.write(f"{api.page(record.submission.run_id)}\n{how_to_follow(record, options.on)}\n")
        sys.stdout.flush()
        if options.wait:
            _follow(record, order.cluster, record.submission.submitted or 0, options)
    except KeyboardInterrupt:
        return _left(record, options)
    return 0


def _follow(record: RunRecord, cluster: Cluster, since: float, options: argparse.Namespace) -> None:
    from pipelines.cluster.follow import follow, show_result

    console, on = make_console(), shlex.quote(options.on)
    show_result(follow(record, cluster, on, since, console), on, console)


def _left(record: RunRecord, options: argparse.Namespace) -> int:
    """Whoever leaves does not end the run; return the exit code of an interrupted command."""
    again = f"{shlex.quote(record.name)} --on {shlex.quote(options.on)}"
    sys.stderr.write(f"left; the run goes on. end it: clipworks cancel {again}\n")
    return 130


def _refuse_running(root: str, run: str, api: "KfpApi") -> None:
    """A second run of a name would write the first one's record.

    Raises:
        RecipeError: it has not ended, as far as is known.
    """
    from pipelines.cluster.status import ask_kfp, is_lost, settle

    if run not in run_names(root):
        return
    record = read_run(root, run)
    if record.state == "running" and record.submission:
        record = settle(root, record, ask_kfp(api, record))
    if record.state == "running" and not is_lost(record):
        raise RecipeError(
            f"--name {run!r}: that run has not ended; follow it with `clipworks status {run}`, end it, "
            "or choose another name"
        )


def status(options: argparse.Namespace) -> int:
    """Say how a run stands, or list the runs."""
    from pipelines.cluster import tables as run_tables

    root, cluster = _where(options)
    if options.run is None:
        found = run_tables.look_at_all(root, cluster)
        if options.json:
            sys.stdout.write(json.dumps(run_tables.all_as_json(found), indent=1) + "\n")
        else:
            run_tables.show_all(root, found, make_console())
        return 0
    seen = run_tables.look_at(root, read_run(root, options.run), cluster)
    if options.json:
        sys.stdout.write(json.dumps(run_tables.as_json(seen), indent=1) + "\n")
    else:
        run_tables.show(seen, make_console())
    if options.watch and seen.record.state == "running":
        try:
            _follow(seen.record, _needed(seen.record, cluster), time.time(), options)
        except KeyboardInterrupt:
            return _left(seen.record, options)
    return 0


def _where(options: argparse.Namespace) -> tuple[str, Cluster | None]:
    """The root that holds the runs, and the cluster, if one was named."""
    cluster = read_cluster(options.on) if options.on else None
    root = options.root or (cluster.place.root if cluster else "runs")
    if cluster and not options.root:
        from pipelines.cluster.submit import reachable_place

        root = reachable_place(cluster).root
    return storage.normalise(root), cluster


def _needed(record: RunRecord, cluster: Cluster | None) -> Cluster:
    """The cluster that must be named to ask KFP about this run.

    Raises:
        RecipeError: none was, or the run is not one of a cluster.
    """
    if record.submission is None:
        raise RecipeError(f"run {record.name!r}: runs on one machine; this asks a cluster")
    if cluster is None:
        name = record.submission.cluster["name"]
        raise RecipeError(f"run {record.name!r}: was submitted to {name!r}; add --on with its file")
    return cluster


def logs(options: argparse.Namespace) -> int:
    """Print what the stages wrote."""
    from pipelines.cluster.logs import Printer
    from pipelines.explain import need

    root, cluster = _where(options)
    record = read_run(root, options.run)
    if options.stage:
        need("--stage", options.stage, list(record.stages), "no such stage in this run")
    printer = Printer(root, record, cluster, [options.stage] if options.stage else list(record.stages))
    printer.show(sys.stdout.write, sys.stderr.write)
    while options.follow and printer.is_running():
        time.sleep(_POLL_SECONDS)
        printer.show(sys.stdout.write, sys.stderr.write)
        sys.stdout.flush()
    return 0


def retry(options: argparse.Namespace) -> int:
    """Run again what is missing."""
    root, cluster = _where(options)
    record = read_run(root, options.run)
    if record.submission is None:
        return _retry_here(root, record, options)
    from pipelines.cluster.again import make_retry
    from pipelines.cluster.kfp_api import KfpApi

    cluster = _needed(record, cluster)
    api = KfpApi(cluster.kfp)
    _refuse_running(root, record.name, api)
    record = read_run(root, record.name)  # settled now
    order = make_retry(record, cluster, options.stage)
    if not order.to_run:
        write_run(root, record.ended_as("finished"))
        sys.stdout.write(f"{record.name}: all {len(order.plans)} stages are complete\n")
        return 0
    return _hand_in(order, api, options)


def _retry_here(root: str, record: RunRecord, options: argparse.Namespace) -> int:
    if options.code is not None:
        raise RecipeError(f"--code: run {record.name!r} ran on one machine, where the code is what is installed")
    if options.on:
        raise RecipeError(f"run {record.name!r}: ran on one machine; retry it there, with --root in place of --on")
    from pipelines.cluster.again import retry_here

    place = Place.model_validate({**record.place, "root": root})
    retry_here(record, place, options.stage, options.again, make_console())
    return 0


def cancel(options: argparse.Namespace) -> int:
    """End a run of a cluster."""
    root, cluster = _where(options)
    record = read_run(root, options.run)
    if record.state != "running":
        sys.stdout.write(f"{record.name}: is {record.state} already\n")
        return 0
    from pipelines.cluster.again import cancel as end

    for line in end(record, _needed(record, cluster)):
        sys.stdout.write(f"{line}\n")
    return 0
