"""Slow references of every score: plain loops in float64, sharing no code with tasks.scores."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import numpy as np
import torch


def softmax(row: list[float]) -> list[float]:
    top = max(row)
    powers = [math.exp(value - top) for value in row]
    return [power / sum(powers) for power in powers]


def log_softmax(row: list[float]) -> list[float]:
    top = max(row)
    rest = math.log(sum(math.exp(value - top) for value in row))
    return [value - top - rest for value in row]


def el2n(row: list[float], label: int) -> float:
    p = softmax(row)
    return math.sqrt(sum((p[k] - (1.0 if k == label else 0.0)) ** 2 for k in range(len(p))))


def loss(row: list[float], label: int) -> float:
    return -log_softmax(row)[label]


def entropy(row: list[float], label: int) -> float:
    return -sum(math.exp(value) * value for value in log_softmax(row))


def margin(row: list[float], label: int) -> float:
    first, second = sorted(softmax(row), reverse=True)[:2]
    return first - second


def least_confidence(row: list[float], label: int) -> float:
    return 1.0 - max(softmax(row))


FROM_LOGITS = {"el2n": el2n, "loss": loss, "entropy": entropy, "margin": margin, "least_confidence": least_confidence}


def from_logits(name: str, logits: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return a score of each row of logits (B, K) by its textbook formula."""
    rows = logits.astype(np.float64).tolist()
    return np.array([FROM_LOGITS[name](row, int(label)) for row, label in zip(rows, labels)])


def gradient_norms(model: torch.nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> np.ndarray[Any, Any]:
    """Return the length of the whole gradient of each example's cross-entropy: one backward pass each, in float64."""
    twin = copy.deepcopy(model).eval().double()
    floating = inputs.double() if inputs.is_floating_point() else inputs
    out = []
    for number in range(len(inputs)):
        twin.zero_grad(set_to_none=True)
        logits = twin(floating[number : number + 1])
        torch.nn.functional.cross_entropy(logits, targets[number : number + 1]).backward()
        total = 0.0
        for parameter in twin.parameters():
            if parameter.requires_grad and parameter.grad is not None:
                gradient = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
                total += float((gradient.abs() ** 2).sum())
        out.append(math.sqrt(total))
    return np.array(out)


def last_layer_norms(
    features: np.ndarray[Any, Any], logits: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], bias: bool
) -> np.ndarray[Any, Any]:
    """Return the length of the last layer's gradient, each entry of its matrix and bias by itself."""
    out = []
    for h, row, label in zip(features.astype(np.float64), logits.astype(np.float64).tolist(), labels):
        p = softmax(row)
        total = 0.0
        for k in range(len(p)):
            error = p[k] - (1.0 if k == label else 0.0)
            total += sum((error * value) ** 2 for value in h)
            total += error**2 if bias else 0.0
        out.append(math.sqrt(total))
    return np.array(out)


def forgetting(history: list[bool]) -> tuple[int, bool, float]:
    """Return (events, never learned, ranking value) of one example's correctness at its presentations."""
    events = sum(1 for before, after in itertools.pairwise(history) if before and not after)
    never = not any(history)
    return events, never, float(len(history) + 1 if never else events)


def area_under_margin(logits: list[list[float]], label: int) -> float:
    """Return the mean margin of one example's logits over its presentations."""
    return sum(row[label] - max(row[k] for k in range(len(row)) if k != label) for row in logits) / len(logits)


def spearman(a: list[float], b: list[float]) -> float:
    """Return Spearman's correlation by its definition, ties at their mean rank."""

    def ranks(values: list[float]) -> list[float]:
        return [
            sum(1 for other in values if other < value) + (sum(1 for other in values if other == value) + 1) / 2
            for value in values
        ]

    x, y = ranks(a), ranks(b)
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    top = sum((p - mean_x) * (q - mean_y) for p, q in zip(x, y))
    return top / math.sqrt(sum((p - mean_x) ** 2 for p in x) * sum((q - mean_y) ** 2 for q in y))
