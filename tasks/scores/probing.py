"""Which rows inside the model are whose, use by use: probed on a batch, and kept for as long as that decides other batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch

from tasks.scores.graph import Node
from tasks.scores.layout import Layout, Seen, digits_of, fitting_layouts
from tasks.scores.operations import wide
from tasks.scores.plan import Plan, Signature, plan_of, sweep
from tasks.scores.structure import Structure, structure

Tensor = torch.Tensor

# Where few rows carry a gradient (a class token), one size can leave two layouts open; another size closes one.
PROBE_ROWS = (3, 2, 4, 5, 7)
# Stands for a layout that is known not to be one: the loop is taken. None is one that no gradient shows.
MIXED = (0, 0)


@dataclass(frozen=True)
class Found:
    """Hold the (before, after) of a use, MIXED or None as above, and which rows (R,) have told so; None: every row has."""

    pair: tuple[int, int] | None
    told: Tensor | None

    def layout(self, examples: int) -> Layout | None:
        """Return the layout of so many examples, or None where there is none to go by."""
        return None if self.pair is None or self.pair == MIXED else Layout(self.pair[0], examples, self.pair[1])


# Found once for each structure of a model's graph, where that decides them, and forgotten with the model. Where every batch has
# a structure of its own (slices by lengths) only so many are kept.
MOST_KNOWN = 64
_KNOWN: WeakKeyDictionary[torch.nn.Module, dict[tuple[Signature, Structure], list[Found]]] = WeakKeyDictionary()


def layouts_of(
    model: torch.nn.Module, inputs: Tensor, logits: Tensor, plan: Plan, parameters: Sequence[torch.nn.Parameter],
    *, anew: bool = False,
) -> tuple[list[Found], bool]:
    """Return what is known of the layout of each use, and whether this batch was probed for it: always where `anew`."""
    examples = len(inputs)
    if examples == 1:
        return [Found((1, use.operation.rows), None) for use in plan.uses], True
    signature, shape = plan.signature(examples), structure(logits, {use.site.node for use in plan.uses})
    known = _KNOWN.setdefault(model, {})
    before = None if shape is None else known.get((signature, shape))
    if before is not None and not anew:
        return before, False
    found = _find_layouts(model, inputs, logits, plan, parameters)
    # A layout that is none may be the fault of one example's numbers; the probe costs little beside the loop.
    if shape is not None and all(one.pair not in (None, MIXED) for one in found):
        if len(known) >= MOST_KNOWN:
            known.clear()
        known[signature, shape] = found if before is None else _together(before, found)
    return found, True


def _together(before: list[Found], found: list[Found]) -> list[Found]:
    """Return what two probes of one structure have told; of two different answers the later one."""

    def both(one: Found, other: Found) -> Found:
        if one.pair != other.pair:
            return other
        told = None if one.told is None or other.told is None else one.told | other.told
        return Found(other.pair, None if told is None or bool(told.all()) else told)

    return [both(one, other) for one, other in zip(before, found, strict=True)]


def _find_layouts(
    model: torch.nn.Module, inputs: Tensor, logits: Tensor, plan: Plan, parameters: Sequence[torch.nn.Parameter]
) -> list[Found]:
    """Return the layout of each use, MIXED where there is no such layout, None where no gradient reached it.

    The batch itself decides. A few of its rows alone tell layouts apart that both fit.
    """
    seen = _probe(logits, plan)
    fits = [None if one is None else one.fits for one in seen]
    for size in PROBE_ROWS:
        if all(one is None or len(one) < 2 for one in fits):
            break
        few = model(inputs[torch.arange(size, device=inputs.device) % len(inputs)])
        other = plan_of(few, parameters)
        if other.signature(size) != plan.signature(len(inputs)):
            return [Found(MIXED, None)] * len(fits)
        for number, more in enumerate(_probe(few, other)):
            so_far = fits[number]
            fits[number] = so_far if so_far is None or more is None else so_far & more.fits
    pairs = [None if one is None else next(iter(one)) if len(one) == 1 else MIXED for one in fits]
    return [
        Found(pair, None if one is None or bool(one.told.all()) else one.told) for pair, one in zip(pairs, seen, strict=True)
    ]


def _probe(logits: Tensor, plan: Plan) -> list[Seen | None]:
    """Send gradients through a batch, one plain and one for each digit of an example's number, and read off whose rows are whose.

    Powers of two scale without rounding, so rows of a model that keeps examples apart show their factor exactly.
    """
    examples = len(logits)
    classes = torch.arange(logits.shape[1], device=logits.device, dtype=logits.dtype)
    plain = torch.cos(1 + classes).expand(logits.shape)
    scales = (2.0 ** digits_of(examples)).to(logits)
    seen = [_lengths(logits, plain * factors.unsqueeze(1), plan) for factors in (torch.ones_like(scales[0]), *scales)]
    out: list[Seen | None] = []
    for number in range(len(plan.uses)):
        if any(number not in lengths for lengths in seen):
            out.append(None)
        else:
            first, *others = (lengths[number] for lengths in seen)
            out.append(fitting_layouts(first, torch.stack(others), examples))
    return out


def _lengths(logits: Tensor, root: Tensor, plan: Plan) -> dict[int, Tensor]:
    """Return the lengths (R,) of the rows of the gradient at each use that one from `root` reaches, by the use's number."""
    found: dict[int, Tensor] = {}

    def meet(node: Node, gradient: Tensor) -> None:
        for number, use in enumerate(plan.uses):
            if use.site.node is node:
                cells = wide(use.operation.cells(gradient)).reshape(use.operation.rows, -1)
                found[number] = torch.linalg.vector_norm(cells, dim=1)

    sweep(logits, root, {use.site.node for use in plan.uses}, meet, keep=True)
    return found
