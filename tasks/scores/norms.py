"""Exact per-example gradient norms over all parameters from one forward and one backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch

from cluster.errors import InputError
from tasks.scores.graph import Node, Site, Target, frontier, trace
from tasks.scores.layout import Fits, Layout, digits_of, fitting_layouts
from tasks.scores.operations import Operation, chunks, square_sum, wide
from tasks.scores.recognise import recognise
from tasks.scores.structure import Structure, structure

Tensor = torch.Tensor
# Where few rows carry a gradient (a class token), one size can leave two layouts open; another size closes one.
PROBE_ROWS = (3, 2, 4, 5, 7)
# Stands for a layout that is known not to be one: the loop is taken.
MIXED = (0, 0)

Signature = tuple[tuple[str, int, int, int, int], ...]
# Found once for each structure of a model's graph, where that decides them, and forgotten with the model. Where every batch has
# a structure of its own (slices by lengths) only so many are kept.
MOST_KNOWN = 64
_KNOWN: WeakKeyDictionary[torch.nn.Module, dict[tuple[Signature, Structure], list[tuple[int, int] | None]]] = WeakKeyDictionary()


@dataclass(frozen=True)
class _Use:
    site: Site
    operation: Operation
    target: int


@dataclass(frozen=True)
class _Plan:
    """Hold the uses with a form of their own, target by target, and the parameters that need the loop."""

    targets: tuple[Target, ...]
    uses: tuple[_Use, ...]
    looped: frozenset[int]

    def signature(self, examples: int) -> Signature:
        """Return what two graphs must share for their layouts to be the same; the last is rows per example."""
        return tuple(
            (use.site.node.name(), use.site.slot, self.targets[use.target].parameter, use.target,
             use.operation.rows // examples if use.operation.rows % examples == 0 else -1)
            for use in self.uses
        )  # fmt: skip


def counted_parameters(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Return the parameters that GraNd is taken over: every one that requires a gradient, once each."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def gradient_norms(
    model: torch.nn.Module,
    inputs: Tensor,
    logits: Tensor,
    root: Callable[[Tensor, slice], Tensor],
) -> Tensor:
    """Return ||d loss_i / d parameters||_2 for each example, (B,) float32, over all parameters that require a gradient.

    `logits` (B, K) is the model's output for `inputs`, with its graph; `root(logits, rows)` gives d loss_i / d logits_i
    of those rows, so that one backward pass from it is that of the SUM of the losses. No per-example gradients of
    matrix products, convolutions, norms or embeddings are kept; a parameter used in any other way has its gradients
    taken one example after the other, which is exact too. Whose rows are whose inside the model is probed on the batch
    itself, once for each structure of the graph, and on every batch where an operation may place rows by its data: a model
    that mixes examples is not computed as if it did not. Parameters and their `.grad` are not touched.
    """
    parameters = counted_parameters(model)
    if not parameters or logits.grad_fn is None:
        raise InputError("grand needs a model with at least one parameter that requires a gradient; it has none")
    plan = _plan(logits, parameters)
    layouts = _layouts(model, inputs, logits, plan, parameters)
    squares, looped = _backward(logits, root(logits.detach(), slice(None)), plan, layouts)
    looped |= plan.looped
    if looped:
        # What the backward pass found for parts of a looped parameter is not in `squares`: it is taken as a whole.
        squares += _loop(model, inputs, [parameters[number] for number in sorted(looped)], root)
    return squares.sqrt().float()


def _plan(logits: Tensor, parameters: Sequence[torch.nn.Parameter]) -> _Plan:
    traced = trace(logits, parameters)
    if any("CheckpointFunction" in name for name in traced.names):
        raise InputError(
            "the model uses reentrant activation checkpointing, which hides its parameters from autograd; "
            "pass use_reentrant=False to torch.utils.checkpoint"
        )
    looped = set(traced.tangled)
    found: list[tuple[Target, list[_Use]]] = []
    for target in traced.targets:
        uses = []
        for site in target.sites:
            operation = recognise(site)
            # Gradients of several uses add up before the norm, so they must come in one shape.
            straight = len(target.sites) == 1 or set(site.chain) <= {"TBackward0", "ToCopyBackward0"}
            if operation is None or not straight:
                looped.add(target.parameter)
                break
            uses.append(_Use(site, operation, len(found)))
        else:
            found.append((target, uses))
    # A looped parameter is taken whole: drop the pieces of it that were understood.
    kept = [(target, uses) for target, uses in found if target.parameter not in looped]
    numbered = [_Use(use.site, use.operation, number) for number, (_, uses) in enumerate(kept) for use in uses]
    return _Plan(tuple(target for target, _ in kept), tuple(numbered), frozenset(looped))


def _layouts(
    model: torch.nn.Module, inputs: Tensor, logits: Tensor, plan: _Plan, parameters: Sequence[torch.nn.Parameter]
) -> list[Layout | None]:
    """Return the layout of each use; None where no gradient shows it."""
    examples = len(inputs)
    if examples == 1:
        return [Layout(1, 1, use.operation.rows) for use in plan.uses]
    signature, shape = plan.signature(examples), structure(logits, {use.site.node for use in plan.uses})
    known = _KNOWN.setdefault(model, {})
    found = None if shape is None else known.get((signature, shape))
    if found is None:
        found = _find_layouts(model, inputs, logits, plan, parameters)
        if shape is not None and None not in found:
            if len(known) >= MOST_KNOWN:
                known.clear()
            known[signature, shape] = found
    return [Layout(pair[0], examples, pair[1]) if pair is not None and pair != MIXED else None for pair in found]


def _find_layouts(
    model: torch.nn.Module, inputs: Tensor, logits: Tensor, plan: _Plan, parameters: Sequence[torch.nn.Parameter]
) -> list[tuple[int, int] | None]:
    """Return (before, after) of each use, MIXED where there is no such layout, None where no gradient reached it.

    The batch itself decides. A few of its rows alone tell layouts apart that both fit.
    """
    fits = _probe(logits, plan)
    for size in PROBE_ROWS:
        if all(seen is None or len(seen) < 2 for seen in fits):
            break
        few = model(inputs[torch.arange(size, device=inputs.device) % len(inputs)])
        other = _plan(few, parameters)
        if other.signature(size) != plan.signature(len(inputs)):
            return [MIXED] * len(fits)
        for number, seen in enumerate(_probe(few, other)):
            so_far = fits[number]
            fits[number] = seen if so_far is None else so_far if seen is None else so_far & seen
    return [None if seen is None else next(iter(seen)) if len(seen) == 1 else MIXED for seen in fits]


def _probe(logits: Tensor, plan: _Plan) -> list[Fits | None]:
    """Send gradients through a batch, one plain and one for each digit of an example's number, and read off whose rows are whose.

    Powers of two scale without rounding, so rows of a model that keeps examples apart show their factor exactly.
    """
    examples = len(logits)
    classes = torch.arange(logits.shape[1], device=logits.device, dtype=logits.dtype)
    plain = torch.cos(1 + classes).expand(logits.shape)
    scales = (2.0 ** digits_of(examples)).to(logits)
    seen = [_lengths(logits, plain * factors.unsqueeze(1), plan) for factors in (torch.ones_like(scales[0]), *scales)]
    out: list[Fits | None] = []
    for number, use in enumerate(plan.uses):
        if use.operation.rows % examples:
            out.append(frozenset())
        elif any(number not in lengths for lengths in seen):
            out.append(None)
        else:
            first, *others = (lengths[number] for lengths in seen)
            out.append(fitting_layouts(first, torch.stack(others), examples))
    return out


def _lengths(logits: Tensor, root: Tensor, plan: _Plan) -> dict[int, Tensor]:
    """Return the lengths (R,) of the rows of the gradient at each use that one from `root` reaches, by the use's number."""
    found: dict[int, Tensor] = {}

    def meet(node: Node, gradient: Tensor) -> None:
        for number, use in enumerate(plan.uses):
            if use.site.node is node:
                cells = wide(use.operation.cells(gradient)).reshape(use.operation.rows, -1)
                found[number] = torch.linalg.vector_norm(cells, dim=1)

    _sweep(logits, root, {use.site.node for use in plan.uses}, meet, keep=True)
    return found


def _sweep(
    logits: Tensor, root: Tensor, nodes: set[Node], meet: Callable[[Node, Tensor], None], *, keep: bool = False
) -> None:
    """Run one backward pass that calls meet(node, gradient at its output) for each node, as soon as that is known.

    No gradient of a parameter is computed, and none is kept once it was met.
    """
    if not nodes:
        return
    last = frontier(logits.grad_fn, nodes)
    handles = []

    def hook_for(node: Node) -> Callable[[tuple[Any, ...]], None]:
        def hook(gradients: tuple[Any, ...]) -> None:
            if gradients[0] is not None:
                meet(node, gradients[0])

        return hook

    try:
        for node in nodes - last:
            handles.append(node.register_prehook(hook_for(node)))
        edges = [torch.autograd.graph.GradientEdge(node, 0) for node in last]
        ends = torch.autograd.grad(logits, edges, root, retain_graph=keep, allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    for edge, gradient in zip(edges, ends):
        if gradient is not None:
            meet(edge.node, gradient)


def _backward(
    logits: Tensor, root: Tensor, plan: _Plan, layouts: list[Layout | None]
) -> tuple[Tensor, set[int]]:
    """Return the squared norms (B,) float64 and the parameters that turned out to need the loop."""
    by_target: list[list[int]] = [[] for _ in plan.targets]
    by_node: dict[Node, list[int]] = {}
    for number, use in enumerate(plan.uses):
        by_target[use.target].append(number)
        by_node.setdefault(use.site.node, []).append(number)
    parts: dict[int, Tensor] = {}
    stashed: dict[int, list[tuple[int, Tensor]]] = {}
    looped: set[int] = set()

    def meet(node: Node, gradient: Tensor) -> None:
        # Norms are float32 whatever the forward pass ran in.
        with torch.no_grad(), torch.autocast(gradient.device.type, enabled=False):
            for number in by_node[node]:
                use, layout = plan.uses[number], layouts[number]
                if layout is None:
                    # An unseen layout matters only where something but zeros flows.
                    if bool(gradient.any()):
                        looped.add(plan.targets[use.target].parameter)
                elif len(by_target[use.target]) == 1:
                    parts[use.target] = use.operation.squares(gradient, layout)
                else:
                    stashed.setdefault(use.target, []).append((number, gradient))

    _sweep(logits, root, set(by_node), meet)
    total = torch.zeros(len(logits), dtype=torch.float64, device=logits.device)
    with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
        for number, target in enumerate(plan.targets):
            if target.parameter in looped:
                continue
            if number in parts:
                total += parts[number]
            elif number in stashed:
                total += _summed(stashed[number], plan, layouts, len(logits))
    return total, looped


def _summed(
    stashed: list[tuple[int, Tensor]], plan: _Plan, layouts: list[Layout | None], examples: int
) -> Tensor:
    """Return the squared norms of a parameter with several uses: their gradients added up, chunk by chunk."""
    first = plan.uses[stashed[0][0]].site
    out = wide(stashed[0][1]).new_empty(examples)
    for start, stop in chunks(examples, 2 * torch.Size(first.shape).numel(), out.device):
        total: Tensor | None = None
        for number, gradient in stashed:
            use, layout = plan.uses[number], layouts[number]
            assert layout is not None
            each = use.operation.gradients(gradient, layout, start, stop)
            # Back to the parameter's own orientation; matrix products give theirs as (in, out).
            if use.site.chain.count("TBackward0") % 2:
                each = each.mT
            total = each if total is None else total + each
        assert total is not None
        out[start:stop] = square_sum(total)
    return out


def _loop(
    model: torch.nn.Module,
    inputs: Tensor,
    parameters: list[torch.nn.Parameter],
    root: Callable[[Tensor, slice], Tensor],
) -> Tensor:
    """Return the squared norms over `parameters` by a forward and a backward pass for each example."""
    out = torch.zeros(len(inputs), dtype=torch.float64, device=inputs.device)
    for number in range(len(inputs)):
        rows = slice(number, number + 1)
        logits = model(inputs[rows])
        gradients = torch.autograd.grad(logits, parameters, root(logits.detach(), rows), allow_unused=True)
        for gradient in gradients:
            if gradient is not None:
                flat = wide(gradient.to_dense() if gradient.is_sparse else gradient).flatten()
                out[number] += torch.linalg.vecdot(flat, flat)
    return out
