"""Every selection protocol by name, with the settings it takes."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from cluster.errors import InputError

if TYPE_CHECKING:
    from tasks.samplers.design import Budget, Design


@dataclass(frozen=True)
class ProtocolInfo:
    """Describe a protocol. `fixed_alpha` is the only share of signal it can have, None where `alpha` must be given."""

    name: str
    fixed_alpha: float | None
    takes_gamma: bool
    module: str
    summary: str


_ALL = (
    ProtocolInfo("random", 0.0, False, "tasks.samplers.uniform", "uniform draw; the consistent baseline"),
    ProtocolInfo("topk", 1.0, False, "tasks.samplers.topk", "the top of the ranking alone; not consistent"),
    ProtocolInfo("exact", None, False, "tasks.samplers.exact", "signal and exploration, exactly unbiased weights"),
    ProtocolInfo("approximate", None, False, "tasks.samplers.approximate", "signal and exploration, all weights 1"),
    ProtocolInfo("tempered", None, True, "tasks.samplers.tempered", "exploration weighted W^gamma, between the two"),
)

PROTOCOLS: dict[str, ProtocolInfo] = {info.name: info for info in _ALL}


def protocol_info(name: str) -> ProtocolInfo:
    """Return what is known of a protocol. Raises InputError with the nearest name."""
    info = PROTOCOLS.get(name)
    if info is None:
        from tasks.imports import nearest

        raise InputError(f"protocol {name!r} is not known; {nearest(name, list(PROTOCOLS))}")
    return info


def design_of(name: str, budgets: Sequence[Budget], gamma: float | None) -> Design:
    """Return the design of a protocol over one budget a group; `gamma` is for those that take it."""
    info = protocol_info(name)
    make = importlib.import_module(info.module).design
    return cast("Design", make(budgets, gamma) if info.takes_gamma else make(budgets))
