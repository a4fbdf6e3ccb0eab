"""How well a classifier tells kept examples from the full split: the area under its ROC curve, as an effect size."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tasks.hashing import I64, hash64

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

FOLDS = 5
LEAST = 20
"""Examples of either kind below which nothing is told: a fold would hold fewer than four."""

# Inverse strength of the ridge penalty, against two in all of weight for each kept example.
_PENALTY = 0.1


def folds_of(full_id: I64, kept_id: I64) -> tuple[I64, I64]:
    """Return the fold of each example: an example that is in both has one fold, or it would be tested on what it trained.

    Folds follow from ids by hash, and divide both the kept and the others evenly.
    """
    kept_fold = _even(kept_id)
    shared = np.isin(full_id, kept_id)
    full_fold = np.empty(len(full_id), dtype=np.int64)
    full_fold[~shared] = _even(full_id[~shared])
    full_fold[shared] = kept_fold[np.searchsorted(kept_id, full_id[shared])]
    return full_fold, kept_fold


def _even(ids: I64) -> I64:
    fold = np.empty(len(ids), dtype=np.int64)
    fold[np.argsort(hash64("shift-fold", 0, ids))] = np.arange(len(ids)) % FOLDS
    return fold


def separation(full: F32, full_id: I64, kept: F32, kept_id: I64, weight: F64) -> float | None:
    """Return the cross-validated AUC by which a classifier tells kept (M, k) from full (N, k): 0.5 where it cannot.

    Ridge logistic regression on the coordinates and their squares, which sees shifts of mean and of spread; kept examples
    count by weight (M,), in training and in the area, and both kinds count the same. The mean over folds. Ids of the
    kept ascend. None below LEAST examples of either kind. Classifier two-sample tests: Lopez-Paz & Oquab 2017.
    """
    from sklearn.linear_model import LogisticRegression

    if min(len(full), len(kept)) < LEAST:
        return None
    full_fold, kept_fold = folds_of(full_id, kept_id)
    inputs = np.concatenate([full, kept]).astype(np.float64)
    spread = full.astype(np.float64).std(axis=0)
    inputs /= np.where(spread > 0, spread, 1.0)
    squares = inputs * inputs
    centre, width = squares[: len(full)].mean(axis=0), squares[: len(full)].std(axis=0)
    inputs = np.concatenate([inputs, (squares - centre) / np.where(width > 0, width, 1.0)], axis=1)
    is_kept = np.concatenate([np.zeros(len(full), dtype=bool), np.ones(len(kept), dtype=bool)])
    share = len(kept) / len(full)
    weights = np.concatenate([np.full(len(full), share), weight * (len(kept) / weight.sum())])
    fold = np.concatenate([full_fold, kept_fold])
    areas = []
    for number in range(FOLDS):
        out = fold == number
        model = LogisticRegression(C=_PENALTY, max_iter=500)
        model.fit(inputs[~out], is_kept[~out], weights[~out])
        area = weighted_area(model.decision_function(inputs[out]), is_kept[out], weights[out])
        if area is None:
            return None
        areas.append(area)
    return float(np.mean(areas))


def weighted_area(score: F64, positive: npt.NDArray[np.bool_], weight: F64) -> float | None:
    """Return the share, by weight, of pairs in which the positive example (N,) has the higher score; ties count a half.

    None where one kind has no weight.
    """
    values, place = np.unique(score, return_inverse=True)
    up = np.bincount(place, weights=np.where(positive, weight, 0.0), minlength=len(values))
    down = np.bincount(place, weights=np.where(positive, 0.0, weight), minlength=len(values))
    pairs = up.sum() * down.sum()
    if pairs <= 0:
        return None
    below = np.cumsum(down) - down
    return float((up @ (below + 0.5 * down)) / pairs)
