"""Laws on the line in closed form: a base law with a constant density ratio on each of a few intervals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

F64 = npt.NDArray[np.float64]


def _density(x: F64) -> F64:
    return np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def _below(x: F64) -> F64:
    """Return E (x - X)+ of the standard normal law: x Phi(x) + phi(x), 0 at minus infinity."""
    return np.where(np.isneginf(x), 0.0, np.nan_to_num(x, neginf=0.0) * ndtr(x) + _density(x))


@dataclass(frozen=True)
class Base:
    """Hold a continuous law: its distribution function M, the inverse, `below` = E (x - X)+, `partial` = E X 1[X <= x]."""

    name: str
    cdf: Callable[[F64], F64]
    ppf: Callable[[F64], F64]
    below: Callable[[F64], F64]
    partial: Callable[[F64], F64]
    draw: Callable[[np.random.Generator, int], F64]


NORMAL = Base("normal", ndtr, ndtri, _below, lambda x: -_density(x), lambda rng, n: rng.standard_normal(n))
UNIFORM = Base(
    "uniform",
    lambda x: np.clip(x, 0.0, 1.0),
    lambda u: np.clip(u, 0.0, 1.0),
    lambda x: np.where(x > 1, x - 0.5, np.clip(x, 0.0, 1.0) ** 2 / 2),
    lambda x: np.clip(x, 0.0, 1.0) ** 2 / 2,
    lambda rng, n: rng.random(n),
)


@dataclass(frozen=True)
class Law:
    """Hold the law with density ratio `ratios[j]` to `base` between `breaks[j-1]` and `breaks[j]`.

    `breaks` ascend; there is one ratio more than breaks, and the ratios are such that the mass is 1.
    """

    base: Base
    breaks: tuple[float, ...]
    ratios: tuple[float, ...]

    @cached_property
    def _left(self) -> F64:
        return np.array([-np.inf, *self.breaks])

    @cached_property
    def _mass(self) -> F64:
        """Return the mass left of each piece, and 1."""
        edges = self.base.cdf(np.array([-np.inf, *self.breaks, np.inf]))
        return np.concatenate([[0.0], np.cumsum(np.array(self.ratios) * np.diff(edges))])

    def _piece(self, x: F64) -> npt.NDArray[np.int64]:
        return np.searchsorted(np.array(self.breaks), x, side="left")

    def cdf(self, x: F64) -> F64:
        """Return F(x)."""
        j = self._piece(x)
        return self._mass[j] + np.array(self.ratios)[j] * (self.base.cdf(x) - self.base.cdf(self._left[j]))

    def quantile(self, u: F64) -> F64:
        """Return a point where F is u; any such point where F is flat."""
        j = np.clip(np.searchsorted(self._mass, u, side="left") - 1, 0, len(self.ratios) - 1)
        ratio = np.array(self.ratios)[j]
        start = self.base.cdf(self._left[j])
        return self.base.ppf(np.clip(start + (u - self._mass[j]) / np.where(ratio > 0, ratio, 1.0), 0.0, 1.0))

    @cached_property
    def mean(self) -> float:
        """Return E X."""
        parts = np.diff(self.base.partial(np.array([-np.inf, *self.breaks, np.inf])))
        return float(np.array(self.ratios) @ parts)

    def below(self, x: F64) -> F64:
        """Return E (x - X)+, the integral of F up to x."""
        starts = [0.0]
        for j, edge in enumerate(self.breaks):
            starts.append(float(self._on_piece(np.array([edge]), np.array([j]), np.array(starts))[0]))
        return self._on_piece(x, self._piece(x), np.array(starts))

    def _on_piece(self, x: F64, j: npt.NDArray[np.int64], starts: F64) -> F64:
        left, ratio = self._left[j], np.array(self.ratios)[j]
        finite = np.where(np.isneginf(left), 0.0, left)
        level = self._mass[j] - ratio * self.base.cdf(left)
        # Left of the first break the level is 0, and so is what it multiplies.
        line = level * np.where(np.isneginf(left), 0.0, x - finite)
        return starts[j] + line + ratio * (self.base.below(x) - self.base.below(left))


def empirical(points: F64, weights: F64) -> tuple[F64, F64]:
    """Return (distinct points ascending (N,), the weighted distribution function at each (N,)); weights are normalised."""
    order = np.argsort(points, kind="stable")
    steps = np.cumsum(weights[order])
    return points[order], steps / steps[-1]


def kolmogorov(points: F64, steps: F64, law: Law) -> float:
    """Return sup |F_n - F| of a law without atoms; `points`, `steps` as `empirical` gives them."""
    at = law.cdf(points)
    before = np.concatenate([[0.0], steps[:-1]])
    return float(max(np.abs(steps - at).max(), np.abs(before - at).max()))


def wasserstein(points: F64, steps: F64, law: Law) -> float:
    """Return the integral of |F_n - F|, exactly: between neighbours F_n is constant and crosses F at most once."""
    left, right, level = points[:-1], points[1:], steps[:-1]
    cross = np.clip(law.quantile(level), left, right)
    at_left, at_cross, at_right = law.below(left), law.below(cross), law.below(right)
    inside = level * (cross - left) - (at_cross - at_left) + (at_right - at_cross) - level * (right - cross)
    ends = law.below(points[[0, -1]])
    tail = ends[1] - points[-1] + law.mean
    return float(ends[0] + inside.sum() + tail)


def sup_distance(first: Law, second: Law) -> float:
    """Return sup |F - G| of two laws over one base with the same breaks: it is reached at a break."""
    at = np.array(first.breaks)
    return float(np.abs(first.cdf(at) - second.cdf(at)).max())
