"""When two forward passes place the rows of examples alike: the structure of a graph, and operations that move rows by data."""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import cache

import torch

from tasks.scores.graph import CUT, REARRANGE, Node, uses_below

Structure = tuple[tuple[object, ...], ...]

# Where the rows of these lie is a function of shapes and settings alone, both part of a structure. Whatever is not named here
# may place them by its data, as x[mask] does: it costs time, a probe of every batch, and no exactness.
_PLACED = frozenset({
    "Abs", "AdaptiveAvgPool2D", "AdaptiveAvgPool3D", "AdaptiveMaxPool2D", "AdaptiveMaxPool3D", "Add", "Addcdiv", "Addcmul",
    "Alias", "Amax", "Amin", "AsStrided", "Atan", "AvgPool2D", "AvgPool3D", "Cat", "Celu", "Clamp", "ClampMax", "ClampMin",
    "Clone", "Col2Im", "ConstantPadNd", "Convolution", "Cos", "CudnnBatchNorm", "CudnnConvolution", "Cumsum", "Div", "Elu",
    "Erf", "Exp", "Expand", "Flip", "FusedRmsNorm", "Gelu", "Glu", "Hardsigmoid", "Hardswish", "Hardtanh", "Im2Col",
    "LeakyRelu", "Lerp", "LinalgVectorNorm", "Log", "Log1P", "LogSigmoid", "LogSoftmax", "Logsumexp", "MaskedFill", "Max",
    "MaxPool2DWithIndices", "MaxPool3DWithIndices", "Maximum", "Mean", "Min", "Minimum", "Mish", "MkldnnConvolution", "Mul",
    "NativeBatchNorm", "NativeDropout", "NativeGroupNorm", "NativeLayerNorm", "Neg", "Norm", "Permute", "PixelShuffle",
    "PixelUnshuffle", "Pow", "PreluKernel", "Reciprocal", "ReflectionPad1D", "ReflectionPad2D", "ReflectionPad3D", "Relu",
    "Repeat", "ReplicationPad1D", "ReplicationPad2D", "ReplicationPad3D", "ReshapeAlias", "Roll", "Rsqrt", "Rsub",
    "ScaledDotProductCudnnAttention", "ScaledDotProductEfficientAttention", "ScaledDotProductFlashAttention",
    "ScaledDotProductFlashAttentionForCpu", "Select", "Sigmoid", "Silu", "Sin", "Slice", "Softmax", "Softplus", "Split",
    "SplitWithSizes", "Sqrt", "Squeeze", "Stack", "Std", "Sub", "Sum", "T", "Tanh", "Threshold", "ToCopy", "Transpose",
    "Unbind", "Unfold", "UnsafeSplit", "UnsafeView", "Unsqueeze", "UpsampleBicubic2D", "UpsampleBilinear2D", "UpsampleLinear1D",
    "UpsampleNearest1D", "UpsampleNearest2D", "UpsampleNearest3D", "Var", "VarMean", "View", "Where",
})  # fmt: skip
# A product of rows with a parameter leaves them where they are; one with other data can gather them. Its operands by slot.
_MATRIX = {"Mm": (0, 1), "Addmm": (1, 2)}
_BATCHED = frozenset({"Bmm", "Baddbmm"})
# Each places rows by its settings; but two paths that these make differ can be chosen between by the data (a mask, a gate), and
# then one batch does not tell of another. Only where the dim that they act on may hold the examples.
_MOVING = frozenset({"Flip", "Roll", "Cat", "Stack"})
_CHAIN = REARRANGE | CUT
# Names of the settings that a kind of node saved, tensors left out: those may be packed away by hooks.
_SETTINGS: dict[str, tuple[str, ...]] = {}


def structure(logits: torch.Tensor, uses: Collection[Node]) -> Structure | None:
    """Return the operations of a graph with shapes, settings and edges; null where rows may lie by the data.

    Two batches of one model whose graphs have the same structure have the rows of their examples at the same places in every
    one of `uses`. Only what lies between them and the logits counts. A batched product is taken to keep apart what its batch
    dim holds, where that is a multiple of the examples; rows are taken not to be put in another order by views of parts of the
    batch, or by parts put together along another dim than the first.
    """
    below = uses_below(logits.grad_fn, uses)
    numbers = {node: number for number, node in enumerate(below)}
    out: list[tuple[object, ...]] = []
    for node, above in below.items():
        if not above and node not in uses:
            continue
        if above and not _is_placed(node, len(logits)):
            return None
        edges = tuple((-1 if child is None else numbers[child], output) for child, output in node.next_functions)
        shapes = tuple(tuple(meta.shape) for meta in node._input_metadata)
        out.append((node.name(), shapes, repr([getattr(node, name) for name in _settings(node)]), edges))
    return tuple(out)


@cache
def _kind(name: str) -> str:
    return re.sub(r"Backward\d*$", "", name)


def _is_placed(node: Node, examples: int) -> bool:
    kind = _kind(node.name())
    if kind in _MATRIX:
        return any(_is_parameter(node.next_functions[slot][0]) for slot in _MATRIX[kind])
    if kind in _BATCHED:
        return bool(node._input_metadata[0].shape[0] % examples == 0)
    return kind in _PLACED and not (kind in _MOVING and _moves_examples(node, kind, examples))


def _moves_examples(node: Node, kind: str, examples: int) -> bool:
    """Return whether one of _MOVING may put the examples of a batch in another order."""
    shape = tuple(node._input_metadata[0].shape)
    if kind in ("Flip", "Roll"):
        # Negative dims are kept as unsigned numbers. A roll without dims is one of all numbers in a row.
        dims = [(dim + 2**63) % 2**64 - 2**63 for dim in node._saved_dims]
        return not dims or any(shape[dim] % examples == 0 for dim in dims)
    if node._saved_dim or shape[0] % examples:
        return False
    # Whole batches one after the other keep their order.
    parts = [child._input_metadata[output].shape for child, output in node.next_functions if child is not None]
    return kind == "Stack" or len(parts) < len(node.next_functions) or any(part[0] % examples for part in parts)


def _is_parameter(node: Node | None) -> bool:
    while node is not None and node.name() in _CHAIN:
        node = node.next_functions[0][0]
    return hasattr(node, "variable")


def _settings(node: Node) -> tuple[str, ...]:
    name = node.name()
    if name not in _SETTINGS:
        names = set(dir(node))
        _SETTINGS[name] = tuple(
            sorted(one for one in names if one.startswith("_saved_") and one.replace("_saved_", "_raw_saved_", 1) not in names)
        )
    return _SETTINGS[name]
