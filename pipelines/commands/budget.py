"""`--budget` of plan, run and submit, and the measured roots that its estimate may use."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from data.place import Place
from pipelines.recipe import Recipe

if TYPE_CHECKING:
    from pipelines.cluster.spec import Cluster
    from pipelines.planning.cost import RunEstimate
    from pipelines.planning.plan import StagePlan


def budget_options(parser: argparse.ArgumentParser) -> None:
    """`--budget`, `--budget-unknown-ok` and `--measured`."""
    parser.add_argument(
        "--budget", metavar="AMOUNT", help="refuse (exit 2) above it: 50 of the cluster file's currency, or 2h"
    )
    parser.add_argument(
        "--budget-unknown-ok", action="store_true", help="with --budget: what is not known is no reason to refuse"
    )
    parser.add_argument(
        "--measured", action="append", default=[], metavar="ROOT",
        help="another root, also s3://, whose runs tell how long stages take and how large they are; repeatable",
    )  # fmt: skip


def keep_to_budget(
    options: argparse.Namespace, recipe: Recipe, place: Place, cluster: "Cluster | None" = None,
    plans: Sequence["StagePlan"] | None = None,
) -> "RunEstimate | None":  # fmt: skip
    """Refuse a run above `--budget`; return its estimate, None where no budget was asked for.

    Raises:
        BudgetError: one line with the estimate, the budget and the dearest stage.
    """
    if options.budget is None:
        return None
    from pipelines.planning.budget import check_budget, parse_budget
    from pipelines.planning.cost import estimate_run
    from pipelines.planning.plan import make_plan

    budget = parse_budget(options.budget, cluster.prices.currency if cluster else None)
    if plans is None or options.measured:  # other roots know of more pairs
        plans = make_plan(recipe, place, options.measured)
    estimate = estimate_run(recipe, plans, place, cluster, options.measured)
    check_budget(estimate, budget, options.budget_unknown_ok)
    return estimate
