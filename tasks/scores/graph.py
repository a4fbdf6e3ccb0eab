"""Where each parameter is used: read off the autograd graph of one forward pass, so that no module is special."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Node = Any
"""A node of the autograd graph (torch.autograd.graph.Node and its compiled kin)."""

Piece = tuple[tuple[int, int], ...]

# Views that rearrange, cast or pick from a parameter: the norm of a gradient is the same on both sides of them.
REARRANGE = frozenset(
    {
        "TBackward0", "TransposeBackward0", "PermuteBackward0", "ViewBackward0", "UnsafeViewBackward0",
        "ReshapeAliasBackward0", "UnsqueezeBackward0", "SqueezeBackward0", "SqueezeBackward1", "ToCopyBackward0",
        "SliceBackward0", "SelectBackward0",
    }
)  # fmt: skip
# Operations that spread a smaller tensor over the rows of a larger one.
_SPREADING = frozenset({"AddBackward0", "SubBackward0", "ExpandBackward0"})
# Views that cut a parameter into disjoint pieces: squared norms of the pieces add up.
CUT = frozenset({"SplitBackward0", "SplitWithSizesBackward0", "UnsafeSplitBackward0", "UnbindBackward0"})


@dataclass(frozen=True)
class Site:
    """One use of a parameter, or of a disjoint piece of it: edge `slot` of an operation's node.

    `shape` is the parameter's as the operation sees it, after the views in `chain`.
    """

    node: Node
    slot: int
    shape: tuple[int, ...]
    chain: tuple[str, ...]


@dataclass(frozen=True)
class Target:
    """Hold the sites whose gradients add up before the norm is taken: those of one parameter, or of a piece of it."""

    parameter: int
    sites: tuple[Site, ...]


@dataclass(frozen=True)
class Trace:
    """Hold every target of a forward pass, and the parameters whose uses overlap in ways that are not followed."""

    targets: tuple[Target, ...]
    tangled: frozenset[int]
    names: frozenset[str]


def trace(output: torch.Tensor, parameters: Sequence[torch.nn.Parameter]) -> Trace:
    """Return every use of `parameters` in the graph of `output`; unused parameters have no target."""
    consumers, leaves, names = _edges(output.grad_fn)
    numbers = {id(parameter): number for number, parameter in enumerate(parameters)}
    targets: list[Target] = []
    tangled: set[int] = set()
    for leaf in leaves:
        number = numbers.get(id(leaf.variable))
        if number is None:
            continue
        pieces = _follow(leaf, consumers)
        if _disjoint(list(pieces)):
            targets += [Target(number, tuple(sites)) for sites in pieces.values()]
        else:
            tangled.add(number)
    return Trace(tuple(targets), frozenset(tangled), names)


def _edges(root: Node) -> tuple[dict[Node, list[tuple[Node, int, int]]], list[Node], frozenset[str]]:
    consumers: dict[Node, list[tuple[Node, int, int]]] = {}
    leaves: list[Node] = []
    names: set[str] = set()
    seen, stack = {root}, [root]
    while stack:
        node = stack.pop()
        names.add(node.name())
        for slot, (below, output) in enumerate(node.next_functions):
            if below is None:
                continue
            consumers.setdefault(below, []).append((node, slot, output))
            if below not in seen:
                seen.add(below)
                stack.append(below)
                if hasattr(below, "variable"):
                    leaves.append(below)
    return consumers, leaves, frozenset(names)


def _follow(leaf: Node, consumers: dict[Node, list[tuple[Node, int, int]]]) -> dict[Piece, list[Site]]:
    """Return the sites that read a leaf through any views, by the piece of it that they read."""
    pieces: dict[Piece, list[Site]] = {}
    # (node, output of it, shape there, views so far, piece so far)
    open_ends: list[tuple[Node, int, tuple[int, ...], tuple[str, ...], Piece]] = []
    open_ends.append((leaf, 0, tuple(leaf.variable.shape), (), ()))
    while open_ends:
        node, output, shape, chain, piece = open_ends.pop()
        for user, slot, read in consumers.get(node, ()):
            name = user.name()
            if read != output:
                continue
            if name in REARRANGE or (name == "EmbeddingBackward0" and _picks_rows(user, consumers)):
                open_ends.append((user, 0, tuple(user._input_metadata[0].shape), (*chain, name), piece))
            elif name in CUT:
                open_ends += [
                    (user, number, tuple(meta.shape), (*chain, name), (*piece, (id(user), number)))
                    for number, meta in enumerate(user._input_metadata)
                ]
            else:
                pieces.setdefault(piece, []).append(Site(user, slot, shape, chain))
    return pieces


def _picks_rows(node: Node, consumers: dict[Node, list[tuple[Node, int, int]]]) -> bool:
    """Return whether an embedding only picks distinct rows that are then spread over the batch, as positions are."""
    if node._saved_scale_grad_by_freq or node._saved_padding_idx < node._saved_weight_sym_argsize_0:
        return False
    shape = tuple(node._input_metadata[0].shape)
    for user, _, _ in consumers.get(node, ()):
        output = tuple(user._input_metadata[0].shape)
        aligned = (1,) * (len(output) - len(shape)) + shape
        if user.name() not in _SPREADING or not output or aligned[0] != 1 or output[0] == 1:
            return False
    indices = node._saved_indices.flatten()
    return bool(indices.unique().numel() == indices.numel())


def _disjoint(pieces: list[Piece]) -> bool:
    """Return whether no two pieces overlap: they must part ways at different outputs of one and the same cut."""
    for number, one in enumerate(pieces):
        for other in pieces[:number]:
            step = next((i for i, (a, b) in enumerate(zip(one, other)) if a != b), None)
            if step is None or one[step][0] != other[step][0]:
                return False
    return True


def frontier(root: Node, nodes: set[Node]) -> set[Node]:
    """Return those of `nodes` from which no other of them is reachable: a backward pass that ends there meets all."""
    below = uses_below(root, nodes)
    return {node for node in nodes if not below.get(node, True)}


def uses_below(root: Node, nodes: Collection[Node]) -> dict[Node, bool]:
    """Return for every node of a graph whether one of `nodes` is reachable from it, itself aside; always in one order."""
    below: dict[Node, bool] = {}
    stack: list[tuple[Node, bool]] = [(root, False)]
    while stack:
        node, entered = stack.pop()
        if entered:
            below[node] = any(child in nodes or below[child] for child, _ in node.next_functions if child is not None)
        elif node not in below:
            below[node] = False
            stack.append((node, True))
            stack += [(child, False) for child, _ in node.next_functions if child is not None and child not in below]
    return below
