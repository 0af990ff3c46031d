"""The report stage: one self-contained page that one would send to a colleague, and the same numbers as JSON."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from data import storage
from data.artifacts import Artifact
from data.errors import EvaluationError, nearest
from data.features import FeatureSet
from data.selection import read_split, uids_of
from data.shards import ShardSet
from data.stage import Outcome, Work
from evaluation import curves, numbers, profile, sections, showcase, words
from evaluation.averages import averages
from evaluation.axis import Axis, axis_over
from evaluation.images import Pictures
from evaluation.provenance import describe, lineage, packages
from evaluation.results import Difference, Key, Results, Row, check_labels, compare_all, incomparable
from evaluation.specs import ReportSpec
from evaluation.tables import mark_of, mark_of_axis, tables

_TEMPLATES = Path(__file__).parent / "templates"
Page = dict[str, Any]


class Headline(NamedTuple):
    """The metric shown first, for every label in order of the pipeline."""

    key: Key
    rows: dict[str, Row]
    final: str  # the last label that is not a control: what the pipeline delivers


def run(spec: ReportSpec, work: Work) -> Outcome:
    """Write `report.html` and `report.json`.

    Raises:
        EvaluationError: a label, the headline or the gallery names what does not exist.
    """
    check_labels(spec)
    results = Results(work.parents_below("evaluations"))
    headline = _headline(spec, results)
    differences = compare_all(results, spec.compare, headline.key)
    models = [label for label in results.rows if label not in spec.controls]
    axes = profile.axes(results, models, spec.compare)
    facts = _facts(spec, results, headline, differences, axes, lineage(work.parents.values()))
    page = facts | _drawn(headline, differences, axes, spec) | _models(spec, results, headline, differences, work)
    page |= _pipeline(spec, work)
    storage.write_bytes(work.out.at("report.html"), render(page).encode())
    storage.write_json(work.out.at("report.json"), facts)
    summary = {name: facts[name] for name in ("headline", "averages", "comparisons")}
    return Outcome({"labels": len(spec.evaluations), "rows": len(facts["rows"])}, summary)


def _headline(spec: ReportSpec, results: Results) -> Headline:
    key = results.resolve(spec.headline)
    rows = {label: rows[key] for label, rows in results.rows.items() if key in rows}
    final = [label for label in rows if label not in spec.controls] or list(rows)
    return Headline(key, rows, final[-1])


def _facts(
    spec: ReportSpec,
    results: Results,
    headline: Headline,
    differences: list[Difference],
    axes: list[profile.AxisMean],
    artifacts: list[Artifact],
) -> Page:
    """Everything that is a number or a name: what `report.json` holds. Its rows hold baselines too."""
    rows = [
        {"label": label, "control": label in spec.controls, **row}
        for label, own in results.entries.items() for row in own
    ]  # fmt: skip
    set_name, split, task, metric = headline.key
    place = {"set": set_name, "split": split, "task": task, "metric": metric}
    shown = [row for row in rows if not row["baseline"] and all(row[name] == value for name, value in place.items())]
    return {
        "title": spec.title,
        "headline": {**place, "final": headline.final, "rows": shown},
        "averages": averages(results, spec.averages),
        "comparisons": [item._asdict() for item in differences if item.family == "headline"],
        "differences": [item._asdict() for item in differences],
        "not_comparable": incomparable(results, spec.compare),
        "axes": [_axis_facts(axis) for axis in axes],
        "rows": rows,
        "chosen": curves.chosen(results),
        "guards": results.guards,
        "provenance": describe(artifacts),
        "packages": packages(artifacts),
    }


def _axis_facts(axis: profile.AxisMean) -> Page:
    return axis._asdict() | {"marks": {label: mark._asdict() for label, mark in axis.marks.items()}}


def _drawn(headline: Headline, differences: list[Difference], axes: list[profile.AxisMean], spec: ReportSpec) -> Page:
    """What the page needs besides the facts to draw the headline and the steps."""
    rows = headline.rows.values()
    changes = [item for item in differences if item.family == "headline"]
    bounds = [bound for item in changes for bound in (item.low, item.high, item.value) if bound is not None]
    span = max(map(abs, bounds), default=0.0) or 1.0
    final = headline.rows[headline.final]
    known = [value for row in rows for value in (row["low"], row["high"], row["chance"]) if value is not None]
    return {
        "axis": axis_over(known),
        "axis_bars": {axis.name: _bars(axis) for axis in axes},
        "change_axis": Axis(-span * 1.05, span * 1.05, (0.0,)),
        "final": final,
        "say": words.sentence(final),
        "matrix": _matrix(differences, spec.compare),
        "controls": list(spec.controls),
        "compare": dict(spec.compare),
        "several_sets": len({row["set"] for row in rows} | {item.set for item in differences}) > 1,
    }


def _matrix(differences: list[Difference], compare: Mapping[str, str]) -> Page:
    """The main metric of every set, split, task and direction (rows) by step (columns)."""
    mains = [item for item in differences if item.family != "other"]
    keys = list(dict.fromkeys(item.key for item in mains))
    cells = {(item.key, item.label): item for item in mains}
    steps = [(label, against) for label, against in compare.items() if any(item.label == label for item in mains)]
    return {"steps": steps, "rows": [(key, [cells.get((key, label)) for label, _ in steps]) for key in keys]}


def _models(spec: ReportSpec, results: Results, headline: Headline, differences: list[Difference], work: Work) -> Page:
    """What the models can do, as tables, plots and examples."""
    labels = list(spec.evaluations)
    own = [label for label in labels if label not in spec.controls]
    names = curves.models_of(labels, spec.controls)
    pictures = _pictures(spec, work)
    against = spec.compare.get(headline.final) or (own[0] if own[0] != headline.final else None)
    return {
        "legend": names.legend,
        "tables": tables(results, labels, spec.controls, differences),
        "robustness": curves.robustness(results, names),
        "factors": curves.factors(results),
        "few_shot": curves.few_shot(results, names),
        "reliability": curves.reliability(results, names),
        "out_of_distribution": curves.out_of_distribution(results, names),
        "modality_gap": curves.modality_gap(results, names),
        "worst_classes": showcase.worst_classes(results, headline.final, against, pictures),
        "worst_against": against,
        "retrieved": showcase.retrieved(results, list(dict.fromkeys((own[0], headline.final))), pictures),
        "parameters": sections.parameters(results.evaluations),
        "evaluation_name": storage.name_of(results.evaluations[headline.final].uri),
    }


def _bars(axis: profile.AxisMean) -> Axis:
    known = [bound for mark in axis.marks.values() for bound in (mark.low, mark.high, mark.value, axis.chance)]
    return axis_over((bound for bound in known if bound is not None), intervals=3)


def _pictures(spec: ReportSpec, work: Work) -> dict[str, Pictures]:
    """Per set: its pictures, as far as they may be shown."""
    return {
        name: Pictures(ShardSet(work.parents[f"sets.{name}.pairs"]), shown.vendors) for name, shown in spec.sets.items()
    }


def _pipeline(spec: ReportSpec, work: Work) -> Page:
    """What a run did before it was evaluated; empty for a comparison of checkpoints from anywhere."""
    selection, rewrites, split = (work.parents.get(role) for role in ("selection", "rewrites", "split"))
    pictures = _pictures(spec, work)
    of_selection = _of(selection.record.parents.get("pairs"), pictures) if selection else None
    cards = {name: own.pairs.artifact.record.metrics.get("data_card") for name, own in pictures.items()}
    return {
        "curation": sections.curation(selection, of_selection) if selection else None,
        "rewriting": sections.rewriting(rewrites) if rewrites else None,
        "training": sections.training(work.parents_below("checkpoints")),
        "gallery": _gallery(spec, work, pictures),
        "gallery_split": spec.gallery.split if spec.gallery else None,
        "data_cards": {name: card for name, card in cards.items() if card},
        "split_counts": split.record.counts if split else {},
    }


def _of(fingerprint: str | None, pictures: Mapping[str, Pictures]) -> Pictures | None:
    """The pictures of that shard set; None where the report was not told what of it may be shown."""
    return next((own for own in pictures.values() if own.pairs.artifact.fingerprint == fingerprint), None)


def _gallery(spec: ReportSpec, work: Work, pictures: Mapping[str, Pictures]) -> list[sections.Section]:
    if spec.gallery is None:
        return []
    features = FeatureSet(work.parents["gallery.features"])
    own = _of(features.artifact.record.parents.get("pairs"), pictures)
    if own is None:
        raise EvaluationError(f"gallery: the pairs of {features.artifact.uri} are not among `sets`; add them there")
    table = read_split(features.artifact.parent("split"))
    uids = uids_of(table, (spec.gallery.split,))
    if not uids:
        hint = nearest(spec.gallery.split, set(table["split"].to_pylist()))
        raise EvaluationError(f"gallery.split: {spec.gallery.split!r} is not a split of its pairs{hint}")
    return sections.gallery(features, uids, spec.gallery.queries, own)


def render(page: Mapping[str, Any]) -> str:
    """Fill the page's template; whatever comes from data is escaped."""
    return environment().get_template("report.html.j2").render(page)


def environment() -> Environment:
    """Where the pages' templates and the words they use come from."""
    made = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    made.filters |= {
        "percent": numbers.percent, "count": numbers.count, "short": numbers.short, "measured": numbers.measured,
        "metric": words.metric_label, "metric_name": words.metric_name, "size": numbers.size, "words": words.words,
        "direction": words.direction, "p": numbers.probability,
    }  # fmt: skip
    made.globals |= {
        "interval": numbers.interval, "difference": numbers.difference, "mark_of": mark_of,
        "mark_of_axis": mark_of_axis,
        "difference_interval": numbers.difference_interval, "tick": _tick,
    }  # fmt: skip
    return made


def _tick(value: float, unit: str) -> str:
    """A tick of an axis: `20 %`, `500`, `0.25`."""
    if unit in ("fraction", "points"):
        return f"{100 * value:.6g}{' %' if unit == 'fraction' else ''}".replace("-", numbers.MINUS)
    return f"{value:,.6g}".replace("-", numbers.MINUS)
