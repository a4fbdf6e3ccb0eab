"""Every score by name: the end that is kept, what it reads, and the version of its definition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cluster.errors import InputError

Direction = Literal["high", "low"]
Needs = Literal["nothing", "logits", "features", "gradients", "dynamics"]


@dataclass(frozen=True)
class ScoreInfo:
    """Describe a score. `direction` is the end that is KEPT as signal; `version` changes with the definition."""

    name: str
    direction: Direction
    needs: Needs
    reads_label: bool
    version: int
    summary: str

    @property
    def by_batch(self) -> bool:
        """Return whether `score_batch` computes it from a model and a batch."""
        return self.needs in ("logits", "features", "gradients")


_ALL = (
    ScoreInfo("random", "high", "nothing", False, 1, "uniform on [0, 1), a keyed hash of the id"),
    ScoreInfo("el2n", "high", "logits", True, 1, "||p - onehot(y)||_2 (Paul 2021)"),
    ScoreInfo("grand", "high", "gradients", True, 1, "||gradient of the loss||_2 over all parameters (Paul 2021)"),
    ScoreInfo("grand_last", "high", "features", True, 1, "||p - onehot(y)||_2 sqrt(||h||^2 + 1): last layer's GraNd"),
    ScoreInfo("loss", "high", "logits", True, 1, "-log p_y"),
    ScoreInfo("entropy", "high", "logits", False, 1, "-sum p log p"),
    ScoreInfo("margin", "low", "logits", False, 1, "largest minus second largest probability"),
    ScoreInfo("least_confidence", "high", "logits", False, 1, "1 - largest probability"),
    ScoreInfo("forgetting", "high", "dynamics", True, 1, "correct-to-wrong events in training (Toneva 2019)"),
    ScoreInfo("aum", "low", "dynamics", True, 1, "mean over training of z_y - max other z, logits (Pleiss 2020)"),
)

SCORES: dict[str, ScoreInfo] = {info.name: info for info in _ALL}


def score_info(name: str) -> ScoreInfo:
    """Return what is known of a score. Raises InputError with the nearest name."""
    info = SCORES.get(name)
    if info is None:
        from tasks.imports import nearest

        raise InputError(f"score {name!r} is not known; {nearest(name, list(SCORES))}")
    return info
