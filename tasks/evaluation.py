"""What a trained model predicts: full passes in eval mode with a fixed number of rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from cluster.errors import StageError
from tasks.arithmetic import arithmetic, autocast
from tasks.recipe import Pipeline
from tasks.spec import Numerics

if TYPE_CHECKING:
    import pyarrow as pa

I64 = np.ndarray[Any, np.dtype[np.int64]]

FORWARD_ROWS = 256
"""Rows of every forward pass: short batches round differently in their last bits, so the last one is padded."""


def predict(
    model: nn.Module, x: np.ndarray[Any, Any], pipeline: Pipeline, numerics: Numerics, rows: int = FORWARD_ROWS
) -> I64:
    """Return the predicted class of each stored example x (N, ...): the first of the largest logits.

    Runs in eval mode without augmentation, on the device the model is on; modes are restored. Raises StageError where
    a logit is NaN.
    """
    modes = [(module, module.training) for module in model.modules()]
    predicted = np.empty(len(x), dtype=np.int64)
    model.eval()
    try:
        with arithmetic(numerics), torch.inference_mode():
            for start in range(0, len(x), rows):
                batch = x[start : start + rows]
                count = len(batch)
                if count < rows:
                    batch = np.concatenate([batch, np.repeat(batch[-1:], rows - count, axis=0)])
                with autocast(numerics):
                    logits = model(pipeline.prepare(batch))
                values = logits[:count].float().cpu().numpy()
                broken = int(np.isnan(values).any(1).sum())
                if broken:
                    raise StageError(
                        f"the trained model gives NaN logits for {broken} of {count} examples; "
                        "training diverged. Lower lr, or check the transform and the weights"
                    )
                predicted[start : start + count] = values.argmax(1)
    finally:
        for module, training in modes:
            module.training = training
    return predicted


def correctness_table(example_id: I64, label: I64, predicted: I64) -> pa.Table:
    """Return schemas.CORRECTNESS."""
    import pyarrow as pa

    from tasks.schemas import CORRECTNESS

    return pa.table([pa.array(example_id), pa.array(label), pa.array(predicted)], schema=CORRECTNESS)


def percent_correct(label: I64, predicted: I64) -> float | None:
    """Return the accuracy in percent, or None where there is no example."""
    return float(100.0 * np.count_nonzero(label == predicted) / len(label)) if len(label) else None


def class_percent(label: I64, predicted: I64, num_classes: int) -> list[float | None]:
    """Return the accuracy in percent of each class (K,); None for a class without examples."""
    return [percent_correct(label[label == k], predicted[label == k]) for k in range(num_classes)]
