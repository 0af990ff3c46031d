"""What the evaluations of a run say together: the headline per label, what each step changed, and every number.

Differences are paired: both models meet the same resampled queries. A verdict says only what the interval says.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from data import storage
from data.artifacts import Artifact
from data.errors import EvaluationError, nearest
from evaluation.bootstrap import paired_difference
from evaluation.metrics import metric_named
from evaluation.queries import Queries, read_queries
from evaluation.specs import Bootstrap, ReportSpec

Key = tuple[str, str, str]
Row = dict[str, Any]
HELPED, HURT, UNCLEAR = "helped", "hurt", "no difference we can see"


class Difference(NamedTuple):
    """One metric of `label` minus that of `against`, on the same queries."""

    label: str
    against: str
    split: str
    task: str
    metric: str
    unit: str
    before: float
    after: float
    value: float
    low: float
    high: float
    verdict: str


class Results:
    """Rows and queries of all evaluations of a report, by label."""

    def __init__(self, evaluations: Mapping[str, Artifact]) -> None:
        self.rows = {label: _rows_of(artifact) for label, artifact in evaluations.items()}
        self.guards = {label: storage.read_json(a.at("report.json"))["guard"] for label, a in evaluations.items()}
        self._evaluations = dict(evaluations)
        self._queries: dict[str, dict[Key, Queries]] = {}

    def keys(self) -> list[Key]:
        """Every (split, task, metric) that any label has, in the order of the evaluations."""
        return list(dict.fromkeys(key for rows in self.rows.values() for key in rows))

    def resolve(self, wanted: Key) -> Key:
        """The key that was evaluated; capitals do not matter.

        Raises:
            EvaluationError: no evaluation has it; names the nearest.
        """
        known = {"/".join(key).lower(): key for key in self.keys()}
        name = "/".join(wanted)
        if name.lower() not in known:
            hint = nearest(name, ("/".join(key) for key in known.values()))
            raise EvaluationError(f"headline: no evaluation has {name!r} (split/task/metric){hint}")
        return known[name.lower()]

    def queries(self, label: str) -> dict[Key, Queries]:
        """Queries by (split, task, direction)."""
        if label not in self._queries:
            found = read_queries(self._evaluations[label])
            self._queries[label] = {(split, task, queries.direction): queries for split, task, queries in found}
        return self._queries[label]

    def differences(self, label: str, against: str, headline: Key) -> list[Difference]:
        """The headline first, then the main metric of every other split, task and direction both labels have."""
        shared = [key for key in self.rows[label] if key in self.rows[against]]
        mains = main_metrics((self.rows[label][key] for key in shared), headline[2])
        ordered = sorted(mains, key=lambda row: (row["split"], row["task"], row["metric"]) != headline)
        return [self._difference(label, against, row) for row in ordered]

    def _difference(self, label: str, against: str, row: Row) -> Difference:
        key, group = (row["split"], row["task"], row["metric"]), (row["split"], row["task"], row["direction"])
        bootstrap = Bootstrap(**self._evaluations[label].record.config["bootstrap"])
        ours, theirs = self.queries(label)[group], self.queries(against)[group]
        found = paired_difference(ours, theirs, metric_named(row["metric"]), bootstrap)
        return Difference(
            label, against, *key, row["unit"], self.rows[against][key]["value"], row["value"], *found,
            verdict=verdict_of(found.low, found.high, row["better"]),
        )  # fmt: skip


def verdict_of(low: float, high: float, better: str) -> str:
    """What an interval of a difference allows to say."""
    if low <= 0 <= high:
        return UNCLEAR
    return HELPED if (low > 0) == (better == "higher") else HURT


def main_metrics(rows: Iterable[Row], headline_metric: str) -> list[Row]:
    """One row per split, task and direction: the headline's metric (or its other direction), else the first."""
    groups: dict[Key, list[Row]] = {}
    for row in rows:
        groups.setdefault((row["split"], row["task"], row["direction"]), []).append(row)
    wanted = headline_metric.rpartition("_")[2] if "_R@" in headline_metric else headline_metric
    return [next((row for row in group if row["metric"].endswith(wanted)), group[0]) for group in groups.values()]


def check_labels(spec: ReportSpec) -> None:
    """Refuse labels that no evaluation has.

    Raises:
        EvaluationError: names the label, where it was used and the nearest right one.
    """
    used = [("compare", label) for pair in spec.compare.items() for label in pair]
    used += [("controls", label) for label in spec.controls]
    for where, label in used:
        if label not in spec.evaluations:
            hint = nearest(label, spec.evaluations) or f"; labels are {', '.join(spec.evaluations)}"
            raise EvaluationError(f"{where}: {label!r} is not an evaluation{hint}")
    if set(spec.evaluations) <= set(spec.controls):
        raise EvaluationError("controls: every evaluation is a control; leave at least one label out")


def sentence(key: Key, row: Row) -> tuple[str, str]:
    """What a value of this metric means, as words before and after the value."""
    metric, first = metric_named(key[2]), "first"
    if metric.kind == "median_rank":
        return "half of the queries find a right answer within rank", ""
    if metric.kind == "class_recall":
        return "the right class comes first for", "of the pictures, classes weighted equally"
    among = first if metric.k == 1 else f"among the first {metric.k}"
    what, of = {
        "image_to_text": ("the right caption", "pictures"),
        "text_to_image": ("a right picture", "captions"),
    }.get(row["direction"], ("the right class", "pictures"))
    return f"{what} comes {among} for", f"of the {of}"


def _rows_of(artifact: Artifact) -> dict[Key, Row]:
    rows = storage.read_json(artifact.at("report.json"))["rows"]
    return {(row["split"], row["task"], row["metric"]): row for row in rows}
