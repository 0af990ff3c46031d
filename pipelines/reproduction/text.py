"""Methods and their cards on a terminal and as Markdown; the index of all cards."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from evaluation.numbers import difference_interval, interval, measured
from pipelines.methods.method import Method
from pipelines.reproduction.card import Card
from pipelines.reproduction.judgement import expectation_text, plus_minus
from pipelines.reproduction.page import cost_rows
from pipelines.review.text import say, table_of

if TYPE_CHECKING:
    from rich.console import Console

NOT_MEASURED = "not measured"
Listed = Iterable[tuple[Method, Card | None]]


def show_list(listed: Listed, console: "Console") -> None:
    """A line a method: name, title, paper, effect."""
    table = table_of("method", "", "paper", "effect")
    for method, card in listed:
        table.add_row(method.name, method.title, method.paper, card.effect if card else NOT_MEASURED)
    console.print(table if table.row_count else "no methods", markup=False)


def show_method(method: Method, card: Card | None, console: "Console") -> None:
    """Everything of one method."""
    for name, text in _facts(method).items():
        say(console, f"{name:<10} {text}")
    _show_lines("formula", method.formula.splitlines(), console)
    _show_lines("where it differs from the paper or its code", method.deviations, console)
    _show_lines("limiting cases", [f"{one.statement}\n    {one.test}" for one in method.limits], console)
    if card is None:
        say(console, f"\nmeasured   not yet; measure it: clipworks reproduce {method.name} --seeds 5")
    else:
        console.print()
        show_card(card, console)


def _facts(method: Method) -> dict[str, str]:
    return {
        "method": f"{method.name}: {method.title}", "paper": method.paper, "licence": method.licence,
        "claim": method.claim, "recipe": f"{method.recipe}: clipworks run {method.recipe}",
        "starts from": method.start, "result": method.result,
    }  # fmt: skip


def _show_lines(title: str, lines: Iterable[str], console: "Console") -> None:
    lines = list(lines)
    if lines:
        say(console, f"\n{title}")
        for line in lines:
            say(console, f"  {line}")


def show_card(card: Card, console: "Console") -> None:
    """What was measured: the verdict, the statements, every arm's means, the costs."""
    say(console, f"{card.head}: {card.effect}")
    say(console, f"{card.seeds} seeds; {card.data}\n")
    console.print(_comparisons(card))
    for ordering in card.orderings:
        say(console, f"\n{ordering.statement}: Kendall's tau {measured(ordering.mean_tau, '')}, "
                     f"wholly so in {ordering.in_order} of {ordering.n} seeds")  # fmt: skip
    console.print()
    console.print(_means(card))
    console.print()
    console.print(_costs(card))


def _comparisons(card: Card) -> Any:
    table = table_of("statement", "of", "expected", "difference", "95 % interval", "seeds", "verdict")
    for one in card.comparisons:
        measure = card.measures[one.measure]
        table.add_row(
            one.statement, measure.title, expectation_text(one.expect, one.margin, measure.unit),
            plus_minus(one, measure.unit), difference_interval(one.low, one.high, measure.unit),
            f"{one.as_expected} of {one.n}", one.verdict + (" (essential)" if one.essential else ""),
        )  # fmt: skip
    return table


def _means(card: Card) -> Any:
    table = table_of("arm", "", *(measure.title for measure in card.measures.values()))
    for name, arm in card.arms.items():
        cells = []
        for measure in card.measures.values():
            mean = measure.means.get(name)
            said = mean and f"{measured(mean.mean, measure.unit)} ({interval(mean.low, mean.high, measure.unit)})"
            cells.append(said or "–")
        table.add_row(arm.title, arm.role, *cells)
    return table


def _costs(card: Card) -> Any:
    rows = cost_rows(card)
    table = table_of("arm", *rows)
    for number, arm in enumerate(card.arms.values()):
        table.add_row(arm.title, *(cells[number] for cells in rows.values()))
    return table


def index_text(listed: Listed) -> str:
    """The table of all methods as Markdown, with links to their cards."""
    lines = [
        "# Method cards", "",
        "What each paper claims, and what was measured here against its control. Made by `clipworks methods index`;",
        "one card: `clipworks reproduce NAME --seeds 5`, on a terminal: `clipworks methods show NAME`.", "",
        "| method | paper | verdict | effect over seeds | seeds |", "|--|--|--|--|--|",
    ]  # fmt: skip
    lines += ["| " + " | ".join(map(_cell, _index_row(method, card))) + " |" for method, card in listed]
    return "\n".join(lines) + "\n"


def _index_row(method: Method, card: Card | None) -> tuple[str, ...]:
    if card is None:
        return method.title, method.paper, NOT_MEASURED, "", ""
    return f"[{method.title}]({method.name}.html)", method.paper, card.head, card.effect, str(card.seeds)


def _cell(text: str) -> str:
    """Text that cannot end its cell."""
    return " ".join(text.replace("|", "\\|").split())


def as_json(method: Method, card: Card | None) -> dict[str, Any]:
    """A method and its card as plain values."""
    told = {name: getattr(method, name) for name in (
        "name", "title", "paper", "licence", "claim", "formula", "recipe", "start", "result"
    )}  # fmt: skip
    limits = [{"statement": one.statement, "test": one.test} for one in method.limits]
    kept = card.model_dump(mode="json") if card else None
    return {**told, "deviations": list(method.deviations), "limits": limits, "measured": kept}
