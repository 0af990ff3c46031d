"""A limit on what a run may take, checked before it starts: `50` (the cluster file's currency) or `2h` of time."""

import re
from typing import Literal, NamedTuple

from data.errors import UserError
from pipelines.planning.cost import RunEstimate, StageEstimate, Sum
from pipelines.planning.plan import duration
from pipelines.planning.text import number_text


class BudgetError(UserError):
    """A run would take more than its budget, or nobody knows whether it would."""


class Budget(NamedTuple):
    """The most that a run may take: money, or hours from its start to its end."""

    amount: float
    unit: Literal["money", "hours"]
    text: str


def parse_budget(text: str, currency: str | None) -> Budget:
    """Read a budget; `currency` is that of the prices, None where there are none.

    Raises:
        BudgetError: it is neither money nor hours, of another currency, or money where nothing has a price.
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    if match is None:
        raise BudgetError(f"--budget {text!r}: give money, e.g. 50, or time, e.g. 2h")
    amount, unit = float(match[1]), match[2]
    if unit in ("h", "min"):
        return Budget(amount / (60 if unit == "min" else 1), "hours", f"{match[1]} {unit}")
    if currency is None:
        raise BudgetError(f"--budget {text!r}: nothing has a price here; give a time, e.g. 2h, or plan --on a cluster")
    if unit and unit.upper() != currency.upper():
        raise BudgetError(f"--budget {text!r}: the cluster file's prices are in {currency}; give {match[1]} {currency}")
    return Budget(amount, "money", f"{match[1]} {currency}")


def check_budget(estimate: RunEstimate, budget: Budget, unknown_ok: bool = False) -> None:
    """Refuse a run that would take more than its budget; and one of which that is not known, unless `unknown_ok`.

    Raises:
        BudgetError: one line with the estimate, the budget and the dearest stage, or what is not known.
    """
    is_money = budget.unit == "money"
    total = estimate.total("money") if is_money else estimate.elapsed
    used = None if total.value is None else total.value if is_money else total.value / 3600
    if used is not None and used > budget.amount:
        raise BudgetError(
            f"budget {budget.text}: this run is estimated to take {_amount(total, estimate, is_money)}"
            f"{_dearest(estimate, is_money)}; raise --budget, or run less (`clipworks plan` has every stage)"
        )
    if not total.is_whole and not unknown_ok:
        unknown = [s.plan.name for s in estimate.stages if s.runs and (s.money if is_money else s.time.seconds) is None]
        raise BudgetError(
            f"budget {budget.text}: cannot be checked: {', '.join(unknown)} not known, the rest is "
            f"{_amount(total, estimate, is_money)}; name measurements (--measured ROOT), or add --budget-unknown-ok"
        )


def _amount(total: Sum, estimate: RunEstimate, is_money: bool) -> str:
    if total.value is None:
        return "not known either"
    least = "" if total.is_whole else "at least "
    if is_money:
        assert estimate.prices
        return f"{least}{number_text(total.value)} {estimate.prices.currency}"
    return f"{least}{duration(total.value)}"


def _dearest(estimate: RunEstimate, is_money: bool) -> str:
    stage = estimate.dearest
    if stage is None or (stage.money if is_money else stage.time.seconds) is None:
        return ""
    return f", most of it {stage.plan.name} ({_of(stage, is_money)}: {stage.time.basis})"


def _of(stage: StageEstimate, is_money: bool) -> str:
    return number_text(stage.money) if is_money else duration(stage.time.seconds)
