"""Design effects of a selection: that of its weights, which every selection has, and what either cannot tell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from tasks.samplers.registry import SIZE, protocol_info
from tasks.selection.spec import NOMINAL, RAKED, UNWEIGHTED

OF_WEIGHTS, OF_TOTALS = "design effect, weights", "design effect, class totals"

# Weights of one design are that number up to the rounding of a product.
_EQUAL = 1e-9


def weight_effect(facts: Mapping[str, Any]) -> float:
    """Return the design effect of the weights of a selection (Kish 1965), n sum w^2 / (sum w)^2 over the n kept."""
    return float(facts["num_kept"] / facts["ess"])


def no_totals_reason(facts: Mapping[str, Any]) -> str:
    """Return why a selection has no design effect on class totals; empty where it has one."""
    if facts.get("design_effect") is not None:
        return ""
    if facts.get("inclusion") == NOMINAL:
        return "given the seed the prototypes follow from the features, so there is no error of a draw"
    if facts.get("estimator") == UNWEIGHTED:
        return "the weights are 1 and estimate no totals"
    if facts.get("estimator") == RAKED:
        return "the weights are calibrated to the totals of classes, so these have no error of a draw"
    if facts.get("classes") is not None:
        return "each class has a budget of its own, so how many of it are kept is not left to the draw"
    protocol = facts.get("protocol")
    if protocol == "ccs":
        return "the draw is by strata of the score, and the classes in a stratum are not counted"
    if protocol is not None and protocol_info(protocol).draws == SIZE:
        return "inclusion differs from row to row, and class counts alone do not give the error"
    return "a random draw of the same size has no error in them here (one class, or all is kept)"


def weight_caveat(facts: Mapping[str, Any]) -> str:
    """Return what the design effect of the weights cannot tell of a selection; empty where weights differ and were drawn by."""
    if weight_effect(facts) > 1 + _EQUAL:
        return ""
    said = "all weights are equal, so it is 1 whatever was kept: it says nothing of bias, or of what is never drawn"
    if facts.get("inclusion") == NOMINAL:
        said += "; inclusion is nominal here, and no weight follows from it"
    return said


def effects_list(selections: Iterable[tuple[str, Mapping[str, Any]]]) -> str:
    """Return the reasons for every dash, and what the figures cannot tell, by (arm, facts) as a list of markup."""
    said: dict[str, dict[str, None]] = {}
    for name, facts in selections:
        caveat, reason = weight_caveat(facts), no_totals_reason(facts)
        for text in (caveat and f"{OF_WEIGHTS}: {caveat}", reason and f"no {OF_TOTALS}: {reason}"):
            if text:
                said.setdefault(text, {})[name] = None
    items = "".join(f"<li>{escape(text)} ({escape(', '.join(names))}).</li>" for text, names in said.items())
    return f'<ul class="caption">{items}</ul>' if items else ""
