"""Exact per-example gradient norms over all parameters from one forward and one backward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch

from cluster.errors import InputError
from tasks.scores.graph import Node
from tasks.scores.layout import Layout
from tasks.scores.one_by_one import squares_one_by_one
from tasks.scores.operations import chunks, square_sum, wide
from tasks.scores.plan import Plan, plan_of, sweep
from tasks.scores.probing import Found, layouts_of

Tensor = torch.Tensor


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
    itself, once for each structure of the graph, and again where a gradient reaches rows that no probe has told of, or an
    operation may place rows by its data. Raises InputError for a model that mixes the examples of a batch above a parameter.
    Parameters and their `.grad` are not touched.
    """
    parameters = counted_parameters(model)
    if not parameters or logits.grad_fn is None:
        raise InputError("grand needs a model with at least one parameter that requires a gradient; it has none")
    if not len(inputs):
        return torch.zeros(0, dtype=torch.float32, device=logits.device)
    plan = plan_of(logits, parameters)
    found, probed = layouts_of(model, inputs, logits, plan, parameters)
    outcome = _backward(logits, root(logits.detach(), slice(None)), plan, found, probed)
    if outcome is None:
        logits = model(inputs)
        plan = plan_of(logits, parameters)
        found, _ = layouts_of(model, inputs, logits, plan, parameters, anew=True)
        outcome = _backward(logits, root(logits.detach(), slice(None)), plan, found, True)
        assert outcome is not None
    squares, looped = outcome
    looped |= plan.looped
    if looped:
        # What the backward pass found for parts of a looped parameter is not in `squares`: it is taken as a whole.
        squares += squares_one_by_one(model, inputs, logits.detach(), [parameters[number] for number in sorted(looped)], root)
    return squares.sqrt().float()


def _backward(
    logits: Tensor, root: Tensor, plan: Plan, found: list[Found], probed: bool
) -> tuple[Tensor, set[int]] | None:
    """Return the squared norms (B,) float64 and the parameters that turned out to need the loop.

    Returns null where a gradient reaches rows that have told of no layout yet, unless this batch was `probed`.
    """
    layouts = [one.layout(len(logits)) for one in found]
    unheard: list[Tensor] = []
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
                use, layout, told = plan.uses[number], layouts[number], found[number].told
                if told is not None and not probed:
                    live = use.operation.cells(gradient).reshape(use.operation.rows, -1).any(1)
                    unheard.append((live & ~told).any())
                if layout is None:
                    # An unseen layout matters only where something but zeros flows.
                    if bool(gradient.any()):
                        looped.add(plan.targets[use.target].parameter)
                elif len(by_target[use.target]) == 1:
                    parts[use.target] = use.operation.squares(gradient, layout)
                else:
                    stashed.setdefault(use.target, []).append((number, gradient))

    sweep(logits, root, set(by_node), meet)
    if unheard and bool(torch.stack(unheard).any()):
        return None
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
    stashed: list[tuple[int, Tensor]], plan: Plan, layouts: list[Layout | None], examples: int
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
