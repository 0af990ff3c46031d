"""What several evaluations say together: every number per label, and what each model changed against another.

Differences are paired: both models met the same resampled samples. A verdict says only what the interval and the
corrected test say. Legend: R resamples.
"""

import io
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from data import storage
from data.artifacts import Artifact
from data.errors import EvaluationError, nearest
from evaluation.bootstrap import interval_of_difference
from evaluation.comparison import ALPHA, Paired, holm, paired_test, wald_test
from evaluation.rows import Doubles, Rows, rows_of
from evaluation.specs import ReportSpec

Key = tuple[str, str, str, str]  # set, split, task, metric
Row = dict[str, Any]
HELPED, HURT, UNCLEAR, CHANGED = "helped", "hurt", "no difference we can see", "differs"
# the metric a task is known by, where that is not the first one it gives
_KNOWN_BY = {"robustness": "corrupted_top1", "paired_selection": "group_score", "concept_association": "cab"}
_ROUNDING = 1e-9
# tasks whose metrics count some of the samples each: right and wrong over all of them would be another question
_OF_PARTS = ("natural_shift", "visual_factors", "concept_association")


class Difference(NamedTuple):
    """One metric of `label` minus that of `against`, on the same samples.

    `low`, `high`: 95 % interval, None where all samples are one cluster. `p_corrected`: Holm's, over its family: the
    headline, the main metric of every task, or all other metrics. `only_ours`, `only_theirs`: samples that one alone
    has right, where the metric counts right samples.
    """

    label: str
    against: str
    set: str
    split: str
    task: str
    metric: str
    family: str
    unit: str
    better: str
    before: float
    after: float
    value: float
    low: float | None
    high: float | None
    test: str | None
    p: float | None
    p_corrected: float | None
    only_ours: int | None
    only_theirs: int | None
    verdict: str

    @property
    def key(self) -> Key:
        """What was compared."""
        return self.set, self.split, self.task, self.metric


class Results:
    """Entries, draws and rows of all evaluations of a report, by label."""

    def __init__(self, evaluations: Mapping[str, Artifact]) -> None:
        self.evaluations = dict(evaluations)
        reports = {label: storage.read_json(a.at("report.json")) for label, a in evaluations.items()}
        self.guards = {label: report["guard"] for label, report in reports.items()}
        self.extras: dict[str, dict[str, Any]] = {label: report.get("extra", {}) for label, report in reports.items()}
        self.entries: dict[str, list[Row]] = {label: report["rows"] for label, report in reports.items()}
        self.rows = {
            label: {key_of(row): row for row in rows if not row["baseline"]} for label, rows in self.entries.items()
        }
        self._draws: dict[str, Doubles] = {}
        self._at = {
            label: {key_of(row): at for at, row in enumerate(rows) if not row["baseline"]}
            for label, rows in self.entries.items()
        }

    def keys(self) -> list[Key]:
        """Every (set, split, task, metric) that any label has, in the order of the evaluations."""
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
            raise EvaluationError(f"headline: no evaluation has {name!r} (set/split/task/metric){hint}")
        return known[name.lower()]

    def draws(self, label: str, key: Key) -> Doubles:
        """The metric's value for every resample (R,)."""
        if label not in self._draws:
            content = storage.read_bytes(self.evaluations[label].at("draws.npy"))
            self._draws[label] = np.load(io.BytesIO(content), allow_pickle=False)
        return np.asarray(self._draws[label][self._at[label][key]], np.float64)

    def read(self, label: str, row: Row) -> Rows:
        """Samples behind an entry."""
        return rows_of(self.evaluations[label], row["file"], row["direction"])

    def comparable(self, label: str, against: str, key: Key) -> bool:
        """Whether both labels were asked the same of the same samples, among as many candidates, and resampled alike.

        Equal captions among fewer pictures are easier to tell apart: candidates and chance say so.
        """
        ours, theirs = self.rows[label].get(key), self.rows[against].get(key)
        bootstraps = [self.evaluations[one].record.config["bootstrap"] for one in (label, against)]
        if not ours or not theirs or bootstraps[0] != bootstraps[1]:
            return False
        chances = [row["chance"] for row in (ours, theirs)]
        same_chance = chances[0] == chances[1] if None in chances else abs(chances[0] - chances[1]) < _ROUNDING
        return same_chance and all(ours[name] == theirs[name] for name in ("samples", "candidates"))


def key_of(row: Row) -> Key:
    """Set, split, task and metric of an entry."""
    return row["set"], row["split"], row["task"], row["metric"]


def compare_all(results: Results, compare: Mapping[str, str], headline: Key) -> list[Difference]:
    """All metrics both labels of each comparison have, in the order of the evaluations.

    Raises:
        EvaluationError: the headline was not asked of the same samples.
    """
    found: list[Difference] = []
    for label, against in compare.items():
        shared = [key for key in results.rows[label] if key in results.rows[against]]
        if headline in shared and not results.comparable(label, against, headline):
            raise EvaluationError(
                f"compare: {label!r} and {against!r} differ in the samples or the bootstrap of {'/'.join(headline)}; "
                "evaluate both with the same sets, splits and tasks"
            )
        mains = {key_of(row) for row in main_metrics((results.rows[label][key] for key in shared), headline[3])}
        rows = [results.rows[label][key] for key in shared if results.comparable(label, against, key)]
        for _, group in groupby(rows, lambda row: row["file"]):
            found += _differences(results, label, against, list(group), headline, mains)
    return _corrected(found)


def incomparable(results: Results, compare: Mapping[str, str]) -> list[Key]:
    """Keys that both labels of a comparison have, of other samples: their values must not be subtracted."""
    pairs = [(label, against, key) for label, against in compare.items() for key in results.rows[label]]
    return list(
        dict.fromkeys(
            key for label, against, key in pairs
            if key in results.rows[against] and not results.comparable(label, against, key)
        )
    )  # fmt: skip


def main_metrics(rows: Iterable[Row], headline_metric: str = "") -> list[Row]:
    """One row per set, split, task and direction: the headline's metric (or its other direction), else the main one."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["set"], row["split"], row["task"], row["direction"]), []).append(row)
    wanted = headline_metric.rpartition("_")[2] if "_R@" in headline_metric else headline_metric
    return [_main(group, wanted) for group in groups.values()]


def _main(group: list[Row], wanted: str) -> Row:
    names = (wanted, _KNOWN_BY.get(group[0]["kind"], ""))
    fits = (
        row for name in names if name for row in group
        if row["metric"] == name or ("R@" in name and row["metric"].endswith(f"_{name}"))
    )  # fmt: skip
    return next(fits, group[0])


def _differences(
    results: Results, label: str, against: str, rows: list[Row], headline: Key, mains: set[Key]
) -> Iterator[Difference]:
    """The metrics over one file of samples, which is read once."""
    ours = theirs = None
    for row in rows:
        key, other = key_of(row), results.rows[against][key_of(row)]
        if ours is None or theirs is None:
            ours, theirs = results.read(label, row), results.read(against, other)
        ours_R, theirs_R = results.draws(label, key), results.draws(against, key)
        values = row["value"], other["value"]
        test = None if row["kind"] in _OF_PARTS else paired_test(ours, theirs, row["metric"], values)
        test = test or wald_test(values[0] - values[1], ours_R - theirs_R) or Paired("", 1.0)
        low, high = interval_of(ours_R - theirs_R)
        yield Difference(
            label, against, *key, family="headline" if key == headline else "main" if key in mains else "other",
            unit=row["unit"], better=row["better"], before=values[1], after=values[0], value=values[0] - values[1],
            low=low, high=high, test=test.test or None, p=test.p if test.test else None, p_corrected=None,
            only_ours=test.only_ours, only_theirs=test.only_theirs, verdict=UNCLEAR,
        )  # fmt: skip


def interval_of(draws_R: Doubles) -> tuple[float | None, float | None]:
    """95 % interval of draws; None where all samples are one cluster, whose spread is not known."""
    if not np.isfinite(draws_R).any():
        return None, None
    return interval_of_difference(draws_R, np.zeros_like(draws_R))


def _corrected(differences: list[Difference]) -> list[Difference]:
    """With p values corrected over each family of tests, and the verdicts that follow."""
    families: dict[str, list[int]] = {}
    for at, item in enumerate(differences):
        if item.p is not None:
            families.setdefault(item.family, []).append(at)
    done = list(differences)
    for members in families.values():
        ps = [p for at in members if (p := differences[at].p) is not None]
        for at, corrected in zip(members, holm(ps), strict=True):
            item = differences[at]
            verdict = verdict_of(item.low, item.high, item.better, corrected)
            done[at] = item._replace(p_corrected=corrected, verdict=verdict)
    return done


def verdict_of(low: float | None, high: float | None, better: str, p_corrected: float = 0.0) -> str:
    """What an interval of a difference and its corrected test allow to say."""
    if low is None or high is None or low <= 0 <= high or p_corrected >= ALPHA:
        return UNCLEAR
    if better == "neither":
        return CHANGED
    return HELPED if (low > 0) == (better == "higher") else HURT


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
