"""From a use of a parameter in the autograd graph to the operation that knows its per-example gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tasks.scores.convolution import Convolution, Geometry
from tasks.scores.graph import Node, Site
from tasks.scores.operations import Broadcast, Embedding, Matmul, Operation, Tensor, rows_of


def recognise(site: Site) -> Operation | None:
    """Return the operation at a site, or None where it is not one of those with a form of their own.

    Reads what the operation saved, so it must run before the backward pass. Raises RuntimeError, as a backward pass
    would, where the model has overwritten a saved tensor in place.
    """
    maker = _MAKERS.get((site.node.name(), site.slot))
    return maker(site) if maker is not None else None


def _output_shape(node: Node) -> tuple[int, ...]:
    return tuple(node._input_metadata[0].shape)


def _broadcast(site: Site, sign: float = 1.0, factor: Tensor | None = None) -> Broadcast | None:
    """Return the form of a parameter that is broadcast over the leading dims of the output."""
    output = _output_shape(site.node)
    if len(site.shape) > len(output):
        return None
    aligned = (1,) * (len(output) - len(site.shape)) + site.shape
    lead = next((dim for dim, size in enumerate(aligned) if size != 1), len(aligned))
    if lead == 0:
        return None
    return Broadcast(rows_of(output, lead), lead, aligned[lead:], site.shape, sign=sign, factor=factor)


def _addmm_bias(site: Site) -> Operation | None:
    return _broadcast(site) if site.node._saved_beta == 1 else None


def _addmm(site: Site) -> Operation | None:
    return Matmul(site.node._saved_mat1) if site.node._saved_alpha == 1 else None


def _mm(site: Site) -> Operation | None:
    return Matmul(site.node._saved_self)


def _added(site: Site) -> Operation | None:
    return _broadcast(site)


def _added_second(site: Site) -> Operation | None:
    return _broadcast(site, sign=float(site.node._saved_alpha))


def _subtracted(site: Site) -> Operation | None:
    return _broadcast(site, sign=-float(site.node._saved_alpha))


def _multiplied(site: Site) -> Operation | None:
    other = site.node._saved_other if site.slot == 0 else site.node._saved_self
    return _broadcast(site, factor=other) if isinstance(other, torch.Tensor) else None


def _repeated(site: Site) -> Operation | None:
    """Return the form of a parameter tiled over the batch: along dims where it is 1, or along its first dim alone."""
    output, repeats = _output_shape(site.node), tuple(site.node._saved_repeats)
    aligned = (1,) * (len(output) - len(site.shape)) + site.shape
    tiled = [dim for dim, times in enumerate(repeats) if times > 1]
    if all(aligned[dim] == 1 for dim in tiled):
        return _broadcast(site)
    if tiled == [0]:
        return Broadcast(repeats[0], 1, aligned, site.shape, fold=True)
    return None


def _prelu(site: Site) -> Operation | None:
    x = site.node._saved_self
    return _broadcast(site, factor=x.clamp(max=0))


def _convolution(site: Site) -> Operation | None:
    node = site.node
    geometry = Geometry(
        tuple(node._saved_stride),
        tuple(node._saved_padding),
        tuple(node._saved_dilation),
        node._saved_groups,
        node._saved_transposed,
        tuple(node._saved_output_padding),
    )
    return Convolution(node._saved_input, node._saved_weight, geometry)


def _channels(site: Site, factor: Tensor | None = None, centre: Tensor | None = None, scale: Tensor | None = None,
              ) -> Operation | None:  # fmt: skip
    output = _output_shape(site.node)
    shape = (output[1],) + (1,) * (len(output) - 2)
    return Broadcast(output[0], 1, shape, site.shape, factor=factor, centre=centre, scale=scale)


def _batch_norm_weight(site: Site) -> Operation | None:
    node = site.node
    if node._saved_training or node._saved_running_mean is None:
        return None
    column = (1, -1) + (1,) * (len(_output_shape(node)) - 2)
    mean, variance = node._saved_running_mean.float(), node._saved_running_var.float()
    # cuDNN's node has another name for it.
    eps = node._saved_epsilon if hasattr(node, "_saved_epsilon") else node._saved_eps
    scale = (variance + eps).rsqrt()
    return _channels(site, node._saved_input, mean.reshape(column), scale.reshape(column))


def _batch_norm_bias(site: Site) -> Operation | None:
    return None if site.node._saved_training else _channels(site)


def _rms_norm_weight(site: Site) -> Operation | None:
    node = site.node
    lead = len(_output_shape(node)) - len(node._saved_normalized_shape)
    if lead == 0:
        return None
    return Broadcast(
        rows_of(_output_shape(node), lead), lead, site.shape, site.shape,
        factor=node._saved_input, scale=node._saved_result1,
    )  # fmt: skip


def _layer_norm_weight(site: Site) -> Operation | None:
    node = site.node
    lead = len(_output_shape(node)) - len(node._saved_normalized_shape)
    if lead == 0:
        return None
    return Broadcast(
        rows_of(_output_shape(node), lead), lead, site.shape, site.shape,
        factor=node._saved_input, centre=node._saved_result1, scale=node._saved_result2,
    )  # fmt: skip


def _layer_norm_bias(site: Site) -> Operation | None:
    lead = len(_output_shape(site.node)) - len(site.node._saved_normalized_shape)
    return Broadcast(rows_of(_output_shape(site.node), lead), lead, site.shape, site.shape) if lead else None


def _group_norm_weight(site: Site) -> Operation | None:
    node = site.node
    output = _output_shape(node)
    each = node._saved_C // node._saved_group
    column = (output[0], output[1]) + (1,) * (len(output) - 2)
    mean = node._saved_result1.reshape(output[0], -1, 1).expand(-1, -1, each).reshape(column)
    scale = node._saved_result2.reshape(output[0], -1, 1).expand(-1, -1, each).reshape(column)
    return _channels(site, node._saved_input, mean, scale)


def _embedding(site: Site) -> Operation | None:
    node = site.node
    if node._saved_scale_grad_by_freq:
        return None
    # -1 is "no padding"; the graph keeps it as an unsigned number.
    padding = node._saved_padding_idx
    return Embedding(node._saved_indices, site.shape, padding if padding < site.shape[0] else -1)


_MAKERS: dict[tuple[str, int], Callable[[Site], Operation | None]] = {
    ("AddmmBackward0", 0): _addmm_bias,
    ("AddmmBackward0", 2): _addmm,
    ("MmBackward0", 1): _mm,
    ("AddBackward0", 0): _added,
    ("AddBackward0", 1): _added_second,
    ("SubBackward0", 0): _added,
    ("SubBackward0", 1): _subtracted,
    ("MulBackward0", 0): _multiplied,
    ("MulBackward0", 1): _multiplied,
    ("ExpandBackward0", 0): _added,
    ("RepeatBackward0", 0): _repeated,
    ("PreluKernelBackward0", 1): _prelu,
    ("ConvolutionBackward0", 1): _convolution,
    ("ConvolutionBackward0", 2): _channels,
    ("NativeBatchNormBackward0", 1): _batch_norm_weight,
    ("NativeBatchNormBackward0", 2): _batch_norm_bias,
    ("CudnnBatchNormBackward0", 1): _batch_norm_weight,
    ("CudnnBatchNormBackward0", 2): _batch_norm_bias,
    ("FusedRmsNormBackward0", 1): _rms_norm_weight,
    ("NativeLayerNormBackward0", 1): _layer_norm_weight,
    ("NativeLayerNormBackward0", 2): _layer_norm_bias,
    ("NativeGroupNormBackward0", 1): _group_norm_weight,
    ("NativeGroupNormBackward0", 2): _channels,
    ("EmbeddingBackward0", 0): _embedding,
}
