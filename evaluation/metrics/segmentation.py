"""Metrics of a two-class segmentation from each picture's confusion counts.

Columns: `foreground_hit`, `foreground_false`, `foreground_missed`, `background_hit`, in patches.
Legend: Q pictures, G clusters, R resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from evaluation.metrics.base import Better, Share, Statistic, Unit
from evaluation.rows import Doubles, Rows

Class = Literal["foreground", "background"]


@dataclass(frozen=True)
class IoU(Share):
    """Mean over `classes` of intersection over union, of counts summed over pictures (PASCAL VOC's mean IoU).

    A class that neither the truth nor the prediction of a draw has does not count in it.
    """

    name: str
    classes: tuple[Class, ...] = ("foreground", "background")
    unit: Unit = "fraction"
    better: Better = "higher"

    def statistic(self, rows: Rows) -> Statistic:
        """Weighted counts, then the ratio of each class, then their mean."""
        counts = [_sums(rows, _hit_and_union(rows, which)) for which in self.classes]

        def value(weights_RG: Doubles) -> Doubles:
            shares = [_ratio(weights_RG @ hit_G, weights_RG @ union_G) for hit_G, union_G in counts]
            known_CR = ~np.isnan(shares)
            total_R = known_CR.sum(axis=0)
            return np.where(total_R > 0, np.nansum(shares, axis=0) / np.maximum(total_R, 1), np.nan)

        return value

    def chance(self, rows: Rows) -> float:
        """A fair coin for every patch, in the limit of many: a class with share f of the patches gets f / (1 + f)."""
        present = sum(float(rows.numbers[name].sum()) for name in ("foreground_hit", "foreground_missed"))
        absent = sum(float(rows.numbers[name].sum()) for name in ("background_hit", "foreground_false"))
        share = {"foreground": present / (present + absent), "background": absent / (present + absent)}
        return float(np.mean([share[which] / (1 + share[which]) for which in self.classes]))


def _hit_and_union(rows: Rows, which: Class) -> tuple[Doubles, Doubles]:
    hit_Q = np.asarray(rows.numbers[f"{which}_hit"], np.float64)
    return hit_Q, hit_Q + rows.numbers["foreground_false"] + rows.numbers["foreground_missed"]


def _sums(rows: Rows, columns: Sequence[Doubles]) -> list[Doubles]:
    return [np.bincount(rows.clusters_Q, column_Q).astype(np.float64) for column_Q in columns]


def _ratio(hit_R: Doubles, union_R: Doubles) -> Doubles:
    return np.divide(hit_R, union_R, out=np.full_like(hit_R, np.nan), where=union_R > 0)
