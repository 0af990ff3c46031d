"""The report stage: one self-contained page that one would send to a colleague, and the same numbers as JSON."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from data import storage
from data.artifacts import Artifact
from data.features import FeatureSet
from data.shards import ShardSet
from data.stage import Outcome, Work
from evaluation import numbers, sections
from evaluation.axis import Axis, axis_over
from evaluation.held_out import Meta, read_meta, split_uids
from evaluation.images import VENDOR, Pictures
from evaluation.provenance import describe, lineage, packages
from evaluation.results import Difference, Key, Results, Row, check_labels, sentence
from evaluation.specs import ReportSpec

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
    differences = [results.differences(label, against, headline.key) for label, against in spec.compare.items()]
    artifacts = lineage(work.parents.values())
    facts = _facts(spec, results, headline, differences, artifacts)
    page = facts | _drawn(headline, differences, spec.controls) | _sections(spec, work)
    storage.write_bytes(work.out.at("report.html"), render(page).encode())
    storage.write_json(work.out.at("report.json"), facts)
    summary = {name: facts[name] for name in ("headline", "comparisons")}
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
    differences: list[list[Difference]],
    artifacts: list[Artifact],
) -> Page:
    """Everything that is a number or a name: what `report.json` holds."""
    rows = [
        {"label": label, "control": label in spec.controls, **row}
        for label, own in results.rows.items() for row in own.values()
    ]  # fmt: skip
    split, task, metric = headline.key
    shown = [row for row in rows if (row["split"], row["task"], row["metric"]) == headline.key]
    return {
        "title": spec.title,
        "headline": {"split": split, "task": task, "metric": metric, "final": headline.final, "rows": shown},
        "comparisons": [found[0]._asdict() for found in differences if found],
        "differences": [item._asdict() for found in differences for item in found],
        "rows": rows,
        "guards": results.guards,
        "provenance": describe(artifacts),
        "packages": packages(artifacts),
    }


def _drawn(headline: Headline, differences: list[list[Difference]], controls: Sequence[str]) -> Page:
    """What the page needs besides the facts to draw the headline, the steps and the tables."""
    rows = headline.rows.values()
    changes = [item for found in differences for item in found[:1]]
    span = max((max(abs(item.low), abs(item.high)) for item in changes), default=0.0) or 1.0
    final = headline.rows[headline.final]
    return {
        "axis": axis_over([value for row in rows for value in (row["high"], row["chance"])]),
        "change_axis": Axis(-span * 1.05, span * 1.05, (0.0,)),
        "final": final,
        "words": sentence(headline.key, final),
        "matrix": _matrix(differences),
        "controls": list(controls),
    }


def _matrix(differences: list[list[Difference]]) -> Page:
    """Main metric of every split, task and direction (columns) by step (rows)."""
    columns = list(dict.fromkeys((d.split, d.task, d.metric) for found in differences for d in found))
    cells = [{(d.split, d.task, d.metric): d for d in found} for found in differences]
    return {"columns": columns, "rows": [[own.get(column) for column in columns] for own in cells]}


def _sections(spec: ReportSpec, work: Work) -> Page:
    pairs = ShardSet(work.parents["pairs"])
    meta = read_meta(pairs)
    pictures = Pictures(pairs, _vendors(meta), spec.gallery_vendors)
    rewrites = work.parents.get("rewrites")
    return {
        "curation": sections.curation(work.parents["selection"], pairs, pictures),
        "rewriting": sections.rewriting(rewrites) if rewrites else None,
        "training": sections.training(work.parents_below("checkpoints")),
        "gallery": _gallery(spec, work, pairs, pictures),
        "gallery_split": spec.gallery_split,
        "parameters": sections.parameters(work.parents_below("evaluations")),
        "data_card": pairs.artifact.record.metrics.get("data_card", {}),
        "split_counts": work.parents["split"].record.counts,
    }


def _gallery(spec: ReportSpec, work: Work, pairs: ShardSet, pictures: Pictures) -> list[sections.Section]:
    if "gallery" not in work.parents or not spec.queries:
        return []
    features = FeatureSet(work.parents["gallery"])
    uids = features.uids
    if spec.gallery_split:
        uids = split_uids(work.parents["split"], (spec.gallery_split,))[spec.gallery_split]
    return sections.gallery(features, uids, spec.queries, pairs, pictures)


def _vendors(meta: Meta) -> dict[str, str]:
    return {uid: str(values[VENDOR]) for uid, values in meta.items() if VENDOR in values}


def tables(rows: list[Row]) -> list[Page]:
    """One table per split, task and direction: labels down, metrics across."""
    groups: dict[Key, list[Row]] = {}
    for row in rows:
        groups.setdefault((row["split"], row["task"], row["direction"]), []).append(row)
    return [
        {
            "split": split, "task": task, "direction": direction,
            "metrics": list(dict.fromkeys(row["metric"] for row in group)),
            "labels": list(dict.fromkeys((row["label"], row["control"]) for row in group)),
            "cells": {(row["label"], row["metric"]): row for row in group},
            "any": group[0],
        } for (split, task, direction), group in groups.items()
    ]  # fmt: skip


def metric_label(metric: str) -> str:
    """A metric as a column head: `image_to_text_R@10` -> `R@10`."""
    for direction in ("image_to_text_", "text_to_image_"):
        metric = metric.removeprefix(direction)
    return {"top1": "top-1", "top5": "top-5"}.get(metric, metric.replace("_", " "))


def render(page: Mapping[str, Any]) -> str:
    """Fill the page's template; whatever comes from data is escaped."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {
        "percent": numbers.percent, "count": numbers.count, "short": numbers.short, "measured": numbers.measured,
        "metric": metric_label, "size": numbers.size, "words": lambda name: name.replace("_", " "),
    }  # fmt: skip
    environment.globals |= {
        "interval": numbers.interval, "difference": numbers.difference, "tables": tables,
        "difference_interval": numbers.difference_interval,
    }  # fmt: skip
    return environment.get_template("report.html.j2").render(page)
