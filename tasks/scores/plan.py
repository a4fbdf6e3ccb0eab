"""Which uses of parameters have gradients of a form of their own, and one backward pass that meets them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cluster.errors import InputError
from tasks.scores.graph import Node, Site, Target, frontier, trace
from tasks.scores.operations import Operation
from tasks.scores.recognise import recognise

Tensor = torch.Tensor
Signature = tuple[tuple[str, int, int, int, int], ...]


@dataclass(frozen=True)
class Use:
    """Hold one use of a parameter, the operation that knows its gradients, and the number of its target."""

    site: Site
    operation: Operation
    target: int


@dataclass(frozen=True)
class Plan:
    """Hold the uses with a form of their own, target by target, and the parameters that need the loop."""

    targets: tuple[Target, ...]
    uses: tuple[Use, ...]
    looped: frozenset[int]

    def signature(self, examples: int) -> Signature:
        """Return what two graphs must share for their layouts to be the same; the last is rows per example."""
        return tuple(
            (use.site.node.name(), use.site.slot, self.targets[use.target].parameter, use.target,
             use.operation.rows // examples if use.operation.rows % examples == 0 else -1)
            for use in self.uses
        )  # fmt: skip


def plan_of(logits: Tensor, parameters: Sequence[torch.nn.Parameter]) -> Plan:
    """Return the plan of a forward pass. Raises InputError for reentrant checkpointing, and as `recognise` does."""
    traced = trace(logits, parameters)
    if any("CheckpointFunction" in name for name in traced.names):
        raise InputError(
            "the model uses reentrant activation checkpointing, which hides its parameters from autograd; "
            "pass use_reentrant=False to torch.utils.checkpoint"
        )
    # A hook may change a gradient, and only the loop asks for those of the parameters themselves.
    looped = set(traced.tangled) | {number for number, parameter in enumerate(parameters) if parameter._backward_hooks}
    found: list[tuple[Target, list[Use]]] = []
    for target in traced.targets:
        uses = []
        for site in target.sites:
            # A complex gradient needs conjugates, and its real part for a real parameter.
            operation = None if site.node._input_metadata[0].dtype.is_complex else recognise(site)
            # Gradients of several uses add up before the norm, so they must come in one shape.
            straight = len(target.sites) == 1 or set(site.chain) <= {"TBackward0", "ToCopyBackward0"}
            if operation is None or not straight:
                looped.add(target.parameter)
                break
            uses.append(Use(site, operation, len(found)))
        else:
            found.append((target, uses))
    # A looped parameter is taken whole: drop the pieces of it that were understood.
    kept = [(target, uses) for target, uses in found if target.parameter not in looped]
    numbered = [Use(use.site, use.operation, number) for number, (_, uses) in enumerate(kept) for use in uses]
    return Plan(tuple(target for target, _ in kept), tuple(numbered), frozenset(looped))


def sweep(
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
