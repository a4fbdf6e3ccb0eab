"""Checks of what was read: features that a model can take, labels that are classes, ids that are int64."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.errors import InputError
from tasks.sources.protocol import RawExamples, Shard

I64 = npt.NDArray[np.int64]

# Whole numbers up to here are exact in float32.
EXACT_FLOAT32 = 2**24
# More different labels than this in one shard is a quantity, not a class.
MAX_LABELS = 100_000


def _refuse_row(bad: Any, shard: Shard, what: str, rule: str) -> None:
    rows = np.flatnonzero(bad)
    if len(rows):
        where = shard.files[rows[0]] if shard.files else f"row {shard.start + int(rows[0])}"
        raise InputError(f"{shard}: {what} in {len(rows)} of {len(bad)} rows, first in {where}; {rule}")


def as_features(x: npt.NDArray[Any], shard: Shard) -> npt.NDArray[Any]:
    """Return features (N, *shape) as uint8 (unchanged) or float32 (everything else).

    Raises InputError on NaN, infinity, floats beyond float32, whole numbers that float32 would change, and other types.
    """
    if x.ndim < 2 or 0 in x.shape[1:]:
        raise InputError(f"{shard}: features have the shape {x.shape}; at least one number for each row is needed: "
                         "(N, ...)")
    if x.dtype == np.uint8:
        return np.ascontiguousarray(x)
    flat = x.reshape(len(x), -1)
    if x.dtype.kind in "iu":
        if x.dtype.itemsize > 2:
            bad = np.logical_or(flat > EXACT_FLOAT32, flat < -EXACT_FLOAT32).any(axis=1)
            _refuse_row(bad, shard, f"{x.dtype} features beyond 2^24", "float32 would change them: scale them first")
    elif x.dtype.kind == "f":
        _refuse_row(~np.isfinite(flat).all(axis=1), shard, "NaN or infinity", "every feature must be finite: mend "
                                                                              "these rows")
    elif x.dtype.kind != "b":
        raise InputError(f"{shard}: features are {x.dtype}; numbers are needed: uint8 or float")
    with np.errstate(over="ignore"):
        out = np.ascontiguousarray(x, dtype=np.float32)
    if x.dtype.kind == "f" and x.dtype.itemsize > 4:
        large = ~np.isfinite(out.reshape(len(out), -1)).all(axis=1)
        _refuse_row(large, shard, "features beyond float32", "scale them below 3.4e38")
    return out


def as_ids(ids: npt.NDArray[Any], shard: Shard) -> I64:
    """Return ids (N,) as int64. Raises InputError for floats, text, or whole numbers beyond int64."""
    if ids.dtype.kind not in "iu" or ids.shape != (shard.rows,):
        raise InputError(
            f"{shard}: ids are {ids.dtype} of shape {ids.shape}; one integer a row is needed ({shard.rows}). "
            "Give an integer column, or leave id_column out: ids are then made from file name and row"
        )
    if ids.dtype == np.uint64:
        _refuse_row(ids > np.uint64(2**63 - 1), shard, "ids above 2^63 - 1", "ids are int64: number them anew")
    return ids.astype(np.int64)


def label_text(label: Any) -> str:
    """Return a label as the text that label_map names it by."""
    return label.decode("utf-8", "backslashreplace") if isinstance(label, bytes) else str(label)


def encode_labels(
    labels: npt.NDArray[Any], label_map: Mapping[str, int] | None, shard: Shard
) -> tuple[I64, Counter[str]]:
    """Return classes (N,) int64 of the labels, and the count of each label that has none (its class is then -1).

    With a map, labels are looked up as text; without, whole numbers are their own class. Raises InputError for missing
    labels, fractions and arrays that hold no labels.
    """
    if labels.shape != (shard.rows,):
        raise InputError(f"{shard}: labels have the shape {labels.shape}; one label a row is needed, ({shard.rows},)")
    if labels.dtype.kind == "f":
        _refuse_row(~np.isfinite(labels), shard, "missing labels (NaN)", "every row needs a label")
        fraction = (labels != np.floor(labels)) | (np.abs(labels) > 2**53)
        if fraction.any():
            first = float(labels[fraction][0])
            raise InputError(f"{shard}: the label {first} is no class; labels are whole numbers or text, one of K "
                             "classes")
        labels = labels.astype(np.int64)
    if labels.dtype.kind == "O":
        # np.unique cannot sort text beside None: missing labels go first.
        _refuse_row(np.array([label is None for label in labels], dtype=bool), shard, "missing labels (null)",
                    "every row needs a label")
        labels = np.array([label_text(label) for label in labels])
    if labels.dtype.kind not in "biuUST":
        raise InputError(f"{shard}: labels are {labels.dtype}; whole numbers or text are needed")
    values, inverse = np.unique(labels, return_inverse=True)
    if len(values) > MAX_LABELS:
        raise InputError(f"{shard}: {len(values)} different labels in {len(labels)} rows; is this a column of classes?")
    unknown: Counter[str] = Counter()
    classes = np.full(len(values), -1, dtype=np.int64)
    counts = np.bincount(inverse.reshape(-1), minlength=len(values))
    for i, value in enumerate(values.tolist()):
        text = label_text(value)
        if label_map is not None and text in label_map:
            classes[i] = label_map[text]
        elif label_map is None and isinstance(value, int) and 0 <= value < 2**31:
            classes[i] = int(value)
        else:
            unknown[text] += int(counts[i])
    return classes[inverse.reshape(-1)], unknown


def check_raw(raw: RawExamples, shard: Shard) -> None:
    """Raise InputError unless the source gave the rows that its shard promised."""
    for name, array in (("ids", raw.example_id), ("features", raw.x), ("labels", raw.labels)):
        if not isinstance(array, np.ndarray) or len(array) != shard.rows:
            got = f"{len(array)} rows" if hasattr(array, "__len__") else type(array).__name__
            raise InputError(f"{shard}: the source gave {got} of {name}; its shard has {shard.rows}, as a numpy array")
