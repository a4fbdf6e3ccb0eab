"""A finite population, and the bias and design variance of calibrated selections of it in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from benchmarks.theory.laws import F64


@dataclass(frozen=True)
class Population:
    """Hold values y (n,) and scores (n,), without ties, high end kept."""

    value: F64
    score: F64

    @cached_property
    def ranked(self) -> F64:
        """Return the values, first of the ranking first."""
        return self.value[np.argsort(-self.score, kind="stable")]

    @property
    def size(self) -> int:
        """Return n."""
        return len(self.value)

    def moments(self, signal: int, explored: int, share: float) -> tuple[float, float]:
        """Return (bias, design variance) of share mean_S + (1 - share) mean_E as an estimate of the mean of all.

        The signal S is not random; E is a simple random sample of `explored` of the other N = n - k_S. So the bias is
        (share - k_S / n) (mean_S - mean_C), the variance (1 - share)^2 (1 - k_E / N) S2_C / k_E, with S2_C over N - 1.
        """
        top, rest = self.ranked[:signal], self.ranked[signal:]
        gap = (float(top.mean()) if signal else 0.0) - float(rest.mean())
        spread = float(rest.var(ddof=1)) if len(rest) > 1 else 0.0
        variance = (1 - share) ** 2 * (1 - explored / len(rest)) * spread / explored
        return (share - signal / self.size) * gap, variance


def signal_share(protocol: str, n: int, signal: int, explored: int, gamma: float | None) -> float:
    """Return the share of the total weight that the signal has: k_S / (k_S + k_E W^g), W = (n - k_S) / k_E."""
    power = {"exact": 1.0, "approximate": 0.0, "random": 1.0}.get(protocol, gamma or 0.0)
    return float(signal / (signal + explored * ((n - signal) / explored) ** power))


def log_normal(n: int, rho: float, seed: int) -> Population:
    """Return y = exp(z) with score rho z + sqrt(1 - rho^2) e, z and e standard normal; one fixed draw."""
    generator = np.random.default_rng(seed)
    z, noise = generator.standard_normal((2, n))
    return Population(np.exp(z), rho * z + np.sqrt(1 - rho**2) * noise)


def variance_curve(ranked: F64, kept: int) -> F64:
    """Return Var_exact for every signal size 0..m-1 (m,), from prefix sums.

    It is (n - k)(n - m) S2_C(k) / (n^2 (m - k)) with k = k_S: the formula of `Population.moments` at share k / n, put
    together.
    """
    n = len(ranked)
    centred = ranked - ranked.mean()
    k = np.arange(kept)
    left = n - k
    total = centred.sum() - np.concatenate([[0.0], np.cumsum(centred)])[:kept]
    squares = (centred**2).sum() - np.concatenate([[0.0], np.cumsum(centred**2)])[:kept]
    spread = np.maximum(squares - total**2 / left, 0.0) / np.maximum(left - 1, 1)
    return left * (n - kept) * spread / (n**2 * (kept - k))


def take_all(ranked: F64, kept: int) -> int:
    """Return the signal size at which the next of the ranking is, for the first time, better left to exploration.

    With N left, k_E to explore, mean and variance S2 (over N - 1) of what is left, taking the next value y for certain
    lowers the variance exactly where (y - mean)^2 > S2 ((N - 1)^2 + k_E - 1) / (N k_E): about W S2.
    """
    for signal in range(kept - 1):
        rest = ranked[signal:]
        left, explored = len(rest), kept - signal
        bound = float(rest.var(ddof=1)) * ((left - 1) ** 2 + explored - 1) / (left * explored)
        if (ranked[signal] - rest.mean()) ** 2 <= bound:
            return signal
    return kept - 1
