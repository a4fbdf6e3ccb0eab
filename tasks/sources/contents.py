"""Checks of what was read: features that a model can take, labels that are classes, ids that are int64."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.errors import InputError
from cluster.redaction import scrub_each
from tasks.sources.protocol import (
    BAD_LABEL,
    NON_FINITE_FEATURE,
    UNDECODABLE,
    WRONG_SHAPE,
    BadRow,
    RawExamples,
    Shard,
)

I64 = npt.NDArray[np.int64]

# Whole numbers up to here are exact in float32.
EXACT_FLOAT32 = 2**24
# More different labels than this in one shard is a quantity, not a class.
MAX_LABELS = 100_000
ROW_CLASSES = (UNDECODABLE, WRONG_SHAPE, NON_FINITE_FEATURE, BAD_LABEL)
CONTENT_CHARS = 32
# Characters of a label that a message shows.
SHOWN_LABEL = 60


def place_of(row: int, shard: Shard) -> str:
    """Return what a person finds a row of the shard by: its file, or its row number."""
    return shard.files[row] if shard.files else f"{shard.relative} row {shard.start + row}"


def _refuse_row(bad: Any, shard: Shard, what: str, rule: str) -> None:
    rows = np.flatnonzero(bad)
    if len(rows):
        where = shard.files[rows[0]] if shard.files else f"row {shard.start + int(rows[0])}"
        raise InputError(f"{shard}: {what} in {len(rows)} of {len(bad)} rows, first in {where}; {rule}")


def as_features(x: npt.NDArray[Any], shard: Shard) -> tuple[npt.NDArray[Any], list[BadRow]]:
    """Return features (N, *shape) as uint8 (unchanged) or float32 (everything else), and the rows that are not finite.

    Raises InputError on whole numbers that float32 would change, and on other types.
    """
    if x.ndim < 2 or 0 in x.shape[1:]:
        raise InputError(f"{shard}: features have the shape {x.shape}; at least one number for each row is needed: "
                         "(N, ...)")
    if x.dtype == np.uint8:
        return np.ascontiguousarray(x), []
    flat = x.reshape(len(x), -1)
    broken = np.zeros(0, dtype=np.int64)
    if x.dtype.kind in "iu":
        if x.dtype.itemsize > 2:
            bad = np.logical_or(flat > EXACT_FLOAT32, flat < -EXACT_FLOAT32).any(axis=1)
            _refuse_row(bad, shard, f"{x.dtype} features beyond 2^24", "float32 would change them: scale them first")
    elif x.dtype.kind == "f":
        broken = np.flatnonzero(~np.isfinite(flat).all(axis=1))
    elif x.dtype.kind != "b":
        raise InputError(f"{shard}: features are {x.dtype}; numbers are needed: uint8 or float")
    with np.errstate(over="ignore"):
        out = np.ascontiguousarray(x, dtype=np.float32)
    found = [BadRow(row, NON_FINITE_FEATURE, "NaN or infinity among its features") for row in broken.tolist()]
    if x.dtype.kind == "f" and x.dtype.itemsize > 4:
        large = np.setdiff1d(np.flatnonzero(~np.isfinite(out.reshape(len(out), -1)).all(axis=1)), broken)
        found += [BadRow(row, NON_FINITE_FEATURE, "features beyond float32 (3.4e38)") for row in large.tolist()]
    return out, found


def content_digest(raw: RawExamples) -> str:
    """Return a digest of the features as they were read, with shape and type: 32 hexadecimal digits. Bad rows count as zeros."""
    x = raw.x
    if raw.bad:
        x = x.copy()
        x[[one.row for one in raw.bad]] = 0
    digest = hashlib.sha256(f"{x.dtype.str} {x.shape}".encode())
    # Of Python objects no row is usable: they stand only where all are bad.
    if x.size and not x.dtype.hasobject:
        digest.update(np.ascontiguousarray(x).view(np.uint8).data)
    return digest.hexdigest()[:CONTENT_CHARS]


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


@dataclass(frozen=True)
class Labels:
    """Hold classes (N,) int64, -1 for labels that have none; the count of each such label that is there; those rows."""

    classes: I64
    unknown: Counter[str]
    bad: list[BadRow]


def encode_labels(
    labels: npt.NDArray[Any], label_map: Mapping[str, int] | None, shard: Shard, num_classes: int | None = None
) -> Labels:
    """Return the classes of labels (N,), where `num_classes` is the K they must lie below, if it is known.

    With a map, labels are looked up as text; without, whole numbers are their own class. Raises InputError for arrays
    that hold no labels.
    """
    if labels.shape != (shard.rows,):
        raise InputError(f"{shard}: labels have the shape {labels.shape}; one label a row is needed, ({shard.rows},)")
    there = np.ones(len(labels), dtype=bool)
    missing = ~there
    bad: list[BadRow] = []
    if labels.dtype.kind == "f":
        fraction = np.isfinite(labels) & ((labels != np.floor(labels)) | (np.abs(labels) > 2**53))
        bad += [
            BadRow(row, BAD_LABEL, f"the label {float(labels[row])} is no class: labels are whole numbers or text")
            for row in np.flatnonzero(fraction).tolist()
        ]
        there = np.isfinite(labels) & ~fraction
        missing = ~np.isfinite(labels)
        labels = labels[there].astype(np.int64)
    elif labels.dtype.kind == "O":
        # np.unique cannot sort text beside None: missing labels go first.
        there = np.array([label is not None for label in labels], dtype=bool)
        missing = ~there
        rest = labels[there].tolist()
        plain = all(isinstance(label, bool) for label in rest)
        labels = np.array(rest, dtype=bool) if plain else np.array([label_text(label) for label in rest])
    if labels.dtype.kind not in "biuUST" and there.any():
        raise InputError(f"{shard}: labels are {labels.dtype}; whole numbers or text are needed")
    values, inverse = np.unique(labels, return_inverse=True)
    if len(values) > MAX_LABELS:
        raise InputError(f"{shard}: {len(values)} different labels in {len(labels)} rows; is this a column of classes?")
    unknown: Counter[str] = Counter()
    of_value = np.full(len(values), -1, dtype=np.int64)
    counts = np.bincount(inverse.reshape(-1), minlength=len(values))
    for i, value in enumerate(values.tolist()):
        text = label_text(value)
        of = label_map.get(text, -1) if label_map is not None else int(value) if isinstance(value, int) else -1
        if 0 <= of < (num_classes or 2**31):
            of_value[i] = of
        else:
            unknown[text] += int(counts[i])
    classes = np.full(len(there), -1, dtype=np.int64)
    classes[there] = of_value[inverse.reshape(-1)]
    bad += [BadRow(row, BAD_LABEL, "its label is missing") for row in np.flatnonzero(missing).tolist()]
    if unknown:
        texts = {i: label_text(value) for i, value in enumerate(values.tolist()) if of_value[i] < 0}
        # Before they are cut: half a secret is not found any more.
        scrubbed = scrub_each(texts.values())
        which = np.full(len(there), -1, dtype=np.int64)
        which[there] = inverse.reshape(-1)
        lost = np.flatnonzero(there & (classes < 0))
        bad += [
            BadRow(row, BAD_LABEL, f"the label {scrubbed[texts[value]][:SHOWN_LABEL]!r} is no class")
            for row, value in zip(lost.tolist(), which[lost].tolist())
        ]
    return Labels(classes, unknown, bad)


def check_raw(raw: RawExamples, shard: Shard) -> None:
    """Raise InputError unless the source gave the rows that its shard promised."""
    for name, array in (("ids", raw.example_id), ("features", raw.x), ("labels", raw.labels)):
        if not isinstance(array, np.ndarray) or array.ndim < 1 or len(array) != shard.rows:
            got = f"{len(array)} rows" if getattr(array, "ndim", 1) and hasattr(array, "__len__") else type(array).__name__
            raise InputError(f"{shard}: the source gave {got} of {name}; its shard has {shard.rows}, as a numpy array")
    for one in raw.bad:
        if one.error_class not in ROW_CLASSES or not 0 <= one.row < shard.rows:
            raise InputError(
                f"{shard}: the source calls row {one.row} {one.error_class!r}; rows are 0 to {shard.rows - 1}, and what is "
                f"wrong with one is {', '.join(ROW_CLASSES)}"
            )
