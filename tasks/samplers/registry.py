"""Every selection protocol by name, with the settings it takes."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from cluster.errors import InputError

if TYPE_CHECKING:
    from tasks.samplers.design import Budget, Design

SPLIT, SLICE, SIZE = "split", "slice", "size"
"""How a protocol draws: signal and exploration; uniformly from cells of a slice of the ranking; in proportion to size."""


@dataclass(frozen=True)
class ProtocolInfo:
    """Describe a protocol.

    `params` are the settings it takes, of those that not every protocol takes. `signal_share` is the only share of signal
    it can have, None where `alpha` says it or there is no such share. `population` is what its weights speak for. `ranks`
    says whether it reads a score, `rotates` whether a training draws its subset anew every epoch (tasks/rotation.py).
    """

    name: str
    params: tuple[str, ...]
    signal_share: float | None
    population: str
    draws: str
    module: str
    summary: str
    ranks: bool = True
    rotates: bool = False


_ALL = (
    ProtocolInfo(
        "random", ("classes",), 0.0, "all", SPLIT, "tasks.samplers.uniform", "uniform draw; the consistent baseline",
        ranks=False,
    ),
    ProtocolInfo(
        "topk", ("classes",), 1.0, "signal", SPLIT, "tasks.samplers.topk", "the top of the ranking alone; not consistent"
    ),
    ProtocolInfo(
        "exact", ("alpha", "classes"), None, "all", SPLIT, "tasks.samplers.exact",
        "signal and exploration, exactly unbiased weights",
    ),
    ProtocolInfo(
        "approximate", ("alpha", "classes"), None, "all", SPLIT, "tasks.samplers.approximate",
        "signal and exploration, all weights 1",
    ),
    ProtocolInfo(
        "tempered", ("alpha", "gamma", "classes"), None, "all", SPLIT, "tasks.samplers.tempered",
        "exploration weighted W^gamma, between the two",
    ),
    ProtocolInfo(
        "ccs", ("beta", "strata", "weights", "classes"), None, "retained", SLICE, "tasks.samplers.ccs",
        "the hardest dropped, the range of scores covered stratum by stratum",
    ),
    ProtocolInfo(
        "band", ("beta", "width", "classes"), None, "band", SLICE, "tasks.samplers.band",
        "class-balanced draw from a band of the ranking below the hardest, all weights 1",
    ),
    ProtocolInfo(
        "prototype_band", ("beta", "width", "classes", "features", "components"), None, "band", SLICE,
        "tasks.samplers.prototype_band", "prototypes of each class in the band: medoids of k-means, all weights 1",
    ),
    ProtocolInfo(
        "raked", ("alpha", "bins", "margins", "bound"), None, "all", SPLIT, "tasks.samplers.raked",
        "the rows of exact, weights calibrated to totals of classes and of bins of the score",
    ),
    ProtocolInfo(
        "pps", ("floor",), None, "all", SIZE, "tasks.samplers.pps",
        "inclusion in proportion to the score, exactly unbiased weights",
    ),
    ProtocolInfo(
        "rs2", (), 0.0, "all", SPLIT, "tasks.samplers.rs2", "a fresh uniform draw every epoch; the strong baseline",
        ranks=False, rotates=True,
    ),
    ProtocolInfo(
        "rotate", ("alpha",), None, "all", SPLIT, "tasks.samplers.rotate",
        "fixed signal, exploration drawn anew every epoch, exactly unbiased weights", rotates=True,
    ),
)  # fmt: skip

PROTOCOLS: dict[str, ProtocolInfo] = {info.name: info for info in _ALL}


def protocol_info(name: str) -> ProtocolInfo:
    """Return what is known of a protocol. Raises InputError with the nearest name."""
    info = PROTOCOLS.get(name)
    if info is None:
        from tasks.imports import nearest

        raise InputError(f"protocol {name!r} is not known; {nearest(name, list(PROTOCOLS))}")
    return info


def takers(param: str) -> list[str]:
    """Return the protocols that take a setting."""
    return [name for name, info in PROTOCOLS.items() if param in info.params]


def design_of(
    name: str, budgets: Sequence[Budget], gamma: float | None = None, weights: str | None = None
) -> Design:
    """Return the design of a protocol over one budget a group; gamma and weights are for those that take them."""
    info = protocol_info(name)
    given = {"gamma": gamma, "weights": weights}
    make = importlib.import_module(info.module).design
    return cast("Design", make(budgets, *(value for param, value in given.items() if param in info.params)))
