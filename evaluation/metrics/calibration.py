"""Expected calibration error: how far confidence and accuracy are apart, bin by bin (Guo et al. 2017, equation 3).

A model that is perfectly calibrated does not get 0 on finitely many samples: `expected_ece` says what it gets.
Legend: Q samples, G clusters, M bins, R resamples.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from evaluation.metrics.base import Better, Mean, Metric, Share, Statistic, Unit, sums_by_cluster
from evaluation.rows import Doubles, Ints, Rows

Binning = Literal["width", "mass"]


@dataclass(frozen=True)
class ExpectedCalibrationError(Share):
    """Sum over bins of |sum of confidence - sum of correct| / n, of columns `confidence` (by name) and `correct`.

    `binning`: `width` for equal widths, (lower, upper] as in Guo et al.; `mass` for equal counts. Bins are those of the
    whole sample, in every draw. Its interval is that of what samples of this size get, noise floor included.
    """

    is_inflated: ClassVar[bool] = True
    name: str
    confidence: str = "confidence"
    bins: int = 15
    binning: Binning = "width"
    unit: Unit = "fraction"
    better: Better = "lower"

    def statistic(self, rows: Rows) -> Statistic:
        """Weighted error."""
        confidence_Q = np.asarray(rows.numbers[self.confidence], np.float64)
        bins_Q = bin_numbers(confidence_Q, self.bins, self.binning)
        excess_MG = sums_by_cluster(confidence_Q - rows.numbers["correct"], bins_Q, rows.clusters_Q)
        count_G = np.bincount(rows.clusters_Q).astype(np.float64)

        def value(weights_RG: Doubles) -> Doubles:
            return np.asarray(np.abs(excess_MG @ weights_RG.T).sum(axis=0) / (weights_RG @ count_G))

        return value

    def chance(self, rows: Rows) -> float | None:
        """Not defined: who knows nothing and says so is perfectly calibrated."""
        del rows
        return None


def calibration_metrics(bins: int, classes: int, largest_logit: float, suffix: str = "") -> list[Metric]:
    """ECE of both binnings, NLL in nats and Brier score, of the columns that end with `suffix`.

    Chance of NLL and Brier is that of equal probabilities. `largest_logit` bounds the size of a logit.
    """
    confidence, most = f"confidence{suffix}", 2 * largest_logit + float(np.log(classes))
    return [
        ExpectedCalibrationError(f"ece{suffix}", confidence, bins),
        ExpectedCalibrationError(f"ece_equal_mass{suffix}", confidence, bins, "mass"),
        Mean(f"nll{suffix}", f"nll{suffix}", "number", "lower", chance_value=float(np.log(classes)), bounds=(0, most)),
        Mean(f"brier{suffix}", f"brier{suffix}", "number", "lower", chance_value=1 - 1 / classes, bounds=(0, 2)),
    ]


def bin_numbers(confidence_Q: Doubles, bins: int, binning: Binning = "width") -> Ints:
    """Bin of each confidence, 0 to M - 1.

    `mass` cuts the sorted sample at equal counts; equal confidences share the bin of the first of them, so that the
    order of the samples cannot matter.
    """
    if binning == "width":
        return np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence_Q, side="left").astype(np.int64)
    first_Q = np.searchsorted(np.sort(confidence_Q), confidence_Q, side="left")
    return np.asarray(first_Q * bins // len(confidence_Q), np.int64)


def reliability(rows: Rows, confidence: str, bins: int) -> list[dict[str, Any]]:
    """Per bin of equal width: range, count, mean confidence and accuracy (None where it is empty)."""
    confidence_Q = np.asarray(rows.numbers[confidence], np.float64)
    bins_Q = bin_numbers(confidence_Q, bins)
    count_M = np.bincount(bins_Q, minlength=bins)
    sums = [np.bincount(bins_Q, values, bins) for values in (confidence_Q, rows.numbers["correct"])]
    return [
        {
            "low": number / bins, "high": (number + 1) / bins, "count": int(count),
            "confidence": float(sums[0][number] / count) if count else None,
            "accuracy": float(sums[1][number] / count) if count else None,
        } for number, count in enumerate(count_M)
    ]  # fmt: skip


def expected_ece(confidence_Q: Doubles, bins: int, binning: Binning = "width") -> float:
    """ECE that a perfectly calibrated model with these confidences is expected to get: the noise floor.

    Per bin the number of right answers is then nearly normal with variance sum p (1 - p), whose mean absolute error
    is sqrt(2 / pi) standard deviations.
    """
    bins_Q = bin_numbers(confidence_Q, bins, binning)
    variance_M = np.bincount(bins_Q, confidence_Q * (1 - confidence_Q), bins)
    return float(np.sqrt(2 / np.pi * variance_M).sum() / len(confidence_Q))
