"""Scores of a batch: one forward pass for all of them, and one backward pass where GraNd is among them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch

from cluster.errors import InputError
from tasks.arithmetic import ordered_attention
from tasks.scores.el2n import el2n
from tasks.scores.entropy import entropy
from tasks.scores.grand import grand
from tasks.scores.grand_last import LastLinear, feature_squares, grand_last
from tasks.scores.least_confidence import least_confidence
from tasks.scores.loss import loss
from tasks.scores.margin import margin
from tasks.scores.registry import score_info
from tasks.scores.state import scoring

Tensor = torch.Tensor


@dataclass(frozen=True)
class Pass:
    """Hold what a forward pass leaves for the scores: logits (B, K) as they came, and `feature_squares` where they are read."""

    logits: Tensor
    squares: Tensor | None


def score_batch(
    model: torch.nn.Module, inputs: Tensor, targets: Tensor | None, names: Sequence[str]
) -> dict[str, Tensor]:
    """Return the scores `names` of a batch, each (B,) float32 on the device of the inputs.

    inputs (B, ...), as the model takes them (normalised, not augmented); targets (B,) int64 in 0..K-1, preferably on the
    CPU (their check does not wait for a GPU then), or None where no score named reads a label. The model runs in eval
    mode and is left as it was: each submodule's mode, gradients, requires_grad flags, buffers and hooks, also when an
    exception passes through. GraNd counts the parameters that require a gradient. Values are returned as they come,
    finite or not.

    Raises InputError for a name that is not computed from a batch (`random`, `forgetting`, `aum`), for labels that are
    missing or out of range, and for a model that cannot give the score asked for.
    """
    infos = [score_info(name) for name in names]
    for info in infos:
        if not info.by_batch:
            source = "the dynamics of a training" if info.needs == "dynamics" else "example ids alone"
            raise InputError(f"score {info.name!r} is not computed from a batch but from {source}: use the score stage")
    if not infos:
        return {}
    labelled = [info.name for info in infos if info.reads_label]
    if labelled and targets is None:
        raise InputError(f"score {labelled[0]!r} reads the label; targets is None. Pass labels (B,), or leave it out")
    gradients = "grand" in names
    with _ready(model, inputs, gradients) as given:
        found = _forward(model, given, names)
        labels = _check_labels(targets, found.logits) if labelled else None
        out = _from_logits(names, found.logits.detach(), found.squares, labels)
        if gradients:
            assert labels is not None
            out["grand"] = grand(model, given, found.logits, labels)
    return {name: out[name].detach() for name in names}


def forward_pass(model: torch.nn.Module, inputs: Tensor, names: Sequence[str]) -> Pass:
    """Run the forward pass of `score_batch` for names without `grand`; `scores_of` takes them from one or several."""
    with _ready(model, inputs, False) as given:
        found = _forward(model, given, names)
        # A model may return the same memory each time.
        return Pass(found.logits.clone(), found.squares)


def scores_of(passes: Sequence[Pass], targets: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Return the scores `names` of all rows of the passes, in turn, as `score_batch` does for each; targets (rows,).

    On the CPU no bit of a row's scores depends on the rows that they are taken together with.
    """
    logits = torch.cat([one.logits for one in passes])
    squares = torch.cat([one.squares for one in passes if one.squares is not None]) if "grand_last" in names else None
    labels = _check_labels(targets, logits) if any(score_info(name).reads_label for name in names) else None
    out = _from_logits(names, logits, squares, labels)
    return {name: out[name] for name in names}


@contextmanager
def _ready(model: torch.nn.Module, inputs: Tensor, gradients: bool) -> Iterator[Tensor]:
    """Put everything as a pass needs it while the block runs; yield the inputs for it."""
    _check_batch_norms(model)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(gradients))
        inputs = inputs.clone() if inputs.is_inference() else inputs.detach()
        stack.enter_context(scoring(model, inputs.device))
        if gradients and torch.are_deterministic_algorithms_enabled():
            stack.enter_context(ordered_attention(inputs.device))
        if gradients and inputs.device.type == "cuda" and any(isinstance(m, torch.nn.RNNBase) for m in model.modules()):
            # cuDNN has no backward pass of a recurrent layer in eval mode.
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield inputs


def _forward(model: torch.nn.Module, inputs: Tensor, names: Sequence[str]) -> Pass:
    if "grand_last" not in names:
        logits = model(inputs)
        _check_logits(logits, inputs)
        return Pass(logits, None)
    with LastLinear(model) as last:
        logits = model(inputs)
    _check_logits(logits, inputs)
    with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
        return Pass(logits, feature_squares(*last.features(logits)))


def _from_logits(
    names: Sequence[str], logits: Tensor, squares: Tensor | None, labels: Tensor | None
) -> dict[str, Tensor]:
    """Return every score but `grand`, in float32 whatever the forward pass ran in."""
    out: dict[str, Tensor] = {}
    with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
        log_p = torch.log_softmax(logits.float(), dim=1)
        # What several scores read is made once: of a small model's pass each of these takes a hundredth.
        p = log_p.exp()
        if "entropy" in names:
            out["entropy"] = entropy(log_p, p)
        if "margin" in names:
            out["margin"] = margin(p)
        if "least_confidence" in names:
            out["least_confidence"] = least_confidence(log_p, p)
        if labels is not None:
            if "el2n" in names or squares is not None:
                out["el2n"] = el2n(p, labels)
            if "loss" in names:
                out["loss"] = loss(log_p, labels)
            if squares is not None:
                out["grand_last"] = grand_last(out["el2n"], squares)
    return out


def _check_batch_norms(model: torch.nn.Module) -> None:
    for name, module in model.named_modules():
        # Private, but the one base of every batch norm, and not of instance norms.
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise InputError(
                f"layer {name!r} is a batch norm without running statistics: it uses the batch's own in eval mode too, "
                "so an example's score would depend on its companions; set track_running_stats=True"
            )


def _check_logits(logits: object, inputs: Tensor) -> None:
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or len(logits) != len(inputs) or logits.shape[1] < 2:
        got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        rows = len(inputs)
        raise InputError(f"the model returned {got} for {rows} rows; it must return logits ({rows}, K), K >= 2")


def _check_labels(targets: Tensor | None, logits: Tensor) -> Tensor:
    assert targets is not None
    if targets.shape != logits.shape[:1] or targets.is_floating_point():
        raise InputError(
            f"targets are {targets.dtype} {tuple(targets.shape)}; "
            f"they must be whole numbers, one for each of {len(logits)} rows"
        )
    if len(targets):
        # Where they lie: labels on the CPU are checked without waiting for the forward pass on the GPU.
        low, high = torch.stack(torch.aminmax(targets)).tolist()
        if low < 0 or high >= logits.shape[1]:
            raise InputError(f"targets run from {low} to {high}; the model has classes 0 to {logits.shape[1] - 1}")
    return targets.to(logits.device, torch.int64, non_blocking=True)
