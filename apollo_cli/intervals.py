"""Means with their 95 % Student-t intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.special import stdtrit

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean over n values, and the half width of its Student-t interval; None for n = 1."""

    mean: float
    half: float | None
    n: int

    @property
    def ends(self) -> tuple[float, float] | None:
        """The lower and the upper end; None for n = 1."""
        return None if self.half is None else (self.mean - self.half, self.mean + self.half)

    @property
    def includes_zero(self) -> bool:
        """Whether the interval, if there is one, includes 0."""
        return self.half is not None and abs(self.mean) <= self.half

    def format(self, digits: int, scale: float = 1) -> str:
        """`3.1416 ± 0.0012`: mean and half width times `scale`, without the latter for n = 1."""
        mean = f"{scale * self.mean:z.{digits}f}"  # 0.000, not -0.000
        return mean if self.half is None else f"{mean} ± {scale * self.half:.{digits}f}"


def interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % interval of independent values: mean ± t(0.975, n - 1) s / sqrt(n) (Student 1908).

    Values that are not finite have a mean and no interval.
    """
    mean, n = fmean(values), len(values)
    if n == 1 or not math.isfinite(mean):
        return Interval(mean, None, n)
    return Interval(mean, float(stdtrit(n - 1, (1 + LEVEL) / 2)) * stdev(values) / math.sqrt(n), n)


def interval_of_all(values: Sequence[float | None]) -> Interval | None:
    """The interval over all values; None where one is missing, or there is none."""
    known = [value for value in values if value is not None]
    return interval(known) if known and len(known) == len(values) else None
