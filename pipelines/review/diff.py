"""What differs between two runs, and only that: fields, data, numbers with their significance, where they ran."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from data.artifacts import Artifact
from data.errors import EvaluationError
from pipelines.recipe_diff import ABSENT, Difference, recipe_diff
from pipelines.review.listing import Seen
from pipelines.review.text import say, short, table_of

if TYPE_CHECKING:
    from rich.console import Console

SAME, FIELDS, POOL, INHERITED, ABSENT_STAGE = (
    "same",
    "its fields",
    "what its pool holds",
    "what it is made of",
    "absent",
)
UNKNOWN = "not known"
_WHYS = (FIELDS, POOL, INHERITED, ABSENT_STAGE, UNKNOWN)
_NOT_THE_RECIPE = ("name", "title", "purpose", "hardware", "minutes", "expect")
_LOSSES = ("loss", "validation_loss")
_NO_KEY = ("", "", "", "")


class RunDiff(NamedTuple):
    """Differences of run B against run A. `numbers` are rows of evaluation.results.Difference, by evaluation stage."""

    recipe: list[Difference]
    about: list[Difference]
    stages: dict[str, str]
    numbers: list[dict[str, Any]]
    not_comparable: list[dict[str, Any]]
    values: list[tuple[str, Any, Any]]
    where: list[Difference]

    @property
    def is_empty(self) -> bool:
        """Nothing that a result could depend on, and no number, differs."""
        return not (self.recipe or self.numbers or self.values or self.not_comparable or self.changed)

    @property
    def changed(self) -> dict[str, str]:
        """Stages whose artifact is another one, with why."""
        return {name: why for name, why in self.stages.items() if why != SAME}


def diff_runs(ours: Seen, theirs: Seen, every_metric: bool = False) -> RunDiff:
    """What `theirs` has otherwise than `ours`.

    `every_metric`: compare all metrics that both evaluations have, not just the main one of every task.
    """
    fields = recipe_diff(ours.record.recipe, theirs.record.recipe)
    about = [one for one in fields if one.path in _NOT_THE_RECIPE]
    recipe = [one for one in fields if one not in about]
    stages = _stages(ours, theirs, recipe)
    numbers, apart = _numbers(ours, theirs, every_metric)
    return RunDiff(recipe, about, stages, numbers, apart, list(_values(ours, theirs)), _where(ours, theirs))


def _stages(ours: Seen, theirs: Seen, recipe: list[Difference]) -> dict[str, str]:
    mine, other = ours.record.stages, theirs.record.stages
    found = {}
    for name in [*mine, *(name for name in other if name not in mine)]:
        if name not in mine or name not in other:
            found[name] = ABSENT_STAGE
        elif not (mine[name].fingerprint and other[name].fingerprint):
            found[name] = UNKNOWN
        elif mine[name].fingerprint == other[name].fingerprint:
            found[name] = SAME
        elif any(f"{one.path}.".startswith(f"stages.{name}.") for one in recipe):
            found[name] = FIELDS
        else:
            found[name] = POOL if ours.kind(name) == "ingest" else INHERITED
    return found


def _numbers(ours: Seen, theirs: Seen, every: bool) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Differences of the evaluations that both runs have, tested on the samples that both answered."""
    mine, other = ours.of_kind("evaluate"), theirs.of_kind("evaluate")
    headline = next((key for seen in (theirs, ours) for key in _headlines(seen)), _NO_KEY)
    found: list[dict[str, Any]] = []
    apart: list[dict[str, Any]] = []
    for name in mine:
        if name in other and mine[name].fingerprint != other[name].fingerprint:
            differences, elsewhere = _compared(mine[name], other[name], headline)
            shown = (one for one in differences if one["value"] and (every or one["family"] != "other"))
            found += [{"stage": name, **one} for one in shown]
            apart += [{"stage": name, **one} for one in elsewhere]
    return found, apart


def _headlines(seen: Seen) -> Iterator[tuple[str, str, str, str]]:
    for report in seen.of_kind("report").values():
        headline = report.record.metrics.get("headline")
        if headline:
            yield headline["set"], headline["split"], headline["task"], headline["metric"]


def _compared(
    ours: Artifact, theirs: Artifact, headline: tuple[str, str, str, str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    from evaluation.results import Results, compare_all, incomparable

    results = Results({"a": ours, "b": theirs})
    try:
        differences = compare_all(results, {"b": "a"}, headline)
    except EvaluationError:  # the headline was asked of other samples; the others are still worth comparing
        differences = compare_all(results, {"b": "a"}, _NO_KEY)
    names = ("set", "split", "task", "metric")
    apart = [
        {**dict(zip(names, key, strict=True)), "before": results.rows["a"][key]["value"],
         "after": results.rows["b"][key]["value"], "unit": results.rows["a"][key]["unit"]}
        for key in incomparable(results, {"b": "a"})
    ]  # fmt: skip
    return [one._asdict() for one in differences], apart


def _values(ours: Seen, theirs: Seen) -> Iterator[tuple[str, Any, Any]]:
    """Counts and last losses that differ: numbers without an interval."""
    shared = [name for name in ours.record.stages if name in theirs.record.stages]
    for name in shared:
        first, second = ours.artifact(name), theirs.artifact(name)
        if first is None or second is None or first.fingerprint == second.fingerprint:
            continue
        before, after = _plain(first), _plain(second)
        for key in [*before, *(key for key in after if key not in before)]:
            if before.get(key, ABSENT) != after.get(key, ABSENT):
                yield f"{name}.{key}", before.get(key, ABSENT), after.get(key, ABSENT)


def _plain(artifact: Artifact) -> dict[str, Any]:
    final = artifact.record.metrics.get("final", {})
    losses = {f"final.{name}": final[name] for name in _LOSSES if name in final} if isinstance(final, Mapping) else {}
    return {**{f"counts.{name}": count for name, count in artifact.record.counts.items()}, **losses}


def _where(ours: Seen, theirs: Seen) -> list[Difference]:
    """Versions, image, code and place: what ran it, apart from what it is."""
    return recipe_diff(_circumstances(ours), _circumstances(theirs))


def _circumstances(seen: Seen) -> dict[str, Any]:
    record = seen.record
    cluster = record.submission.cluster.get("name", "cluster") if record.submission else None
    return {
        "versions": record.versions, "image": record.image, "code": record.code, "cluster": cluster,
        "place": {name: value for name, value in record.place.items() if name != "code"},
    }  # fmt: skip


def as_json(found: RunDiff) -> dict[str, Any]:
    """The differences as plain values."""
    plain = {name: [one._asdict() for one in getattr(found, name)] for name in ("recipe", "about", "where")}
    values = [{"path": path, "old": old, "new": new} for path, old, new in found.values]
    return {
        **plain, "stages": found.stages, "numbers": found.numbers, "not_comparable": found.not_comparable,
        "values": values,
    }  # fmt: skip


def show(found: RunDiff, names: tuple[str, str], console: "Console") -> None:
    """Print what differs, one line each; parts without a difference are left out."""
    if found.is_empty and not found.where:
        say(console, f"{names[0]} and {names[1]} are equal: recipe, artifacts, numbers, versions and place")
        return
    if found.is_empty:
        say(console, f"{names[0]} and {names[1]} have equal recipes, artifacts and numbers")
    _show_fields("recipe", found.recipe, console)
    if found.changed:
        say(console, "\nartifacts that differ, and why")
        for why in (one for one in _WHYS if one in found.changed.values()):
            say(console, f"  {why}: {', '.join(name for name, own in found.changed.items() if own == why)}")
    _show_numbers(found.numbers, names, console)
    for one in found.not_comparable:
        where = "/".join(one[part] for part in ("set", "split", "task", "metric"))
        say(console, f"  {one['stage']} {where}: other samples, so not compared")
    if found.values:
        say(console, "\ncounts and losses")
        for path, old, new in found.values:
            say(console, f"  {path}: {_value(old)} -> {_value(new)}")
    _show_fields("where it ran (cannot change a result, but versions may)", found.where, console)


def _show_fields(title: str, fields: list[Difference], console: "Console") -> None:
    if fields:
        say(console, f"\n{title}")
        for one in fields:
            say(console, f"  {one.path}: {short(one.old)} -> {short(one.new)}")


def _show_numbers(numbers: list[dict[str, Any]], names: tuple[str, str], console: "Console") -> None:
    from evaluation.numbers import difference, difference_interval, measured, probability

    if not numbers:
        return
    console.print()
    table = table_of("evaluation", "number", *names, "difference", "95 % interval", "p", "")
    for one in numbers:
        unit, where = one["unit"], " ".join(one[part] for part in ("set", "split", "task", "metric"))
        table.add_row(
            one["stage"], where, measured(one["before"], unit), measured(one["after"], unit),
            difference(one["value"], unit), difference_interval(one["low"], one["high"], unit),
            probability(one["p_corrected"]), one["verdict"],
        )  # fmt: skip
    console.print(table)
    say(
        console,
        "differences on the same samples, fractions in points; p corrected by Holm over each evaluation's table",
    )


def _value(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return short(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
