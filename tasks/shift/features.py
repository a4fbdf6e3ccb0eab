"""What stands for the full split: a hash sample of the train split, its principal components and its k-means cells."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.errors import CorruptError
from cluster.record import Part, Seal, Unit, read_part
from cluster.self_digest import BLANK, MARK
from cluster.storage import Store
from tasks.hashing import I64, hash64
from tasks.shift.energy import mean_within
from tasks.shift.spec import ShiftSpec
from tasks.tables import encode_table, load_part, part_check

F32 = npt.NDArray[np.float32]

SAMPLE, BASIS, CENTRES = "sample.parquet", "basis.npy", "centres.npy"
MAX_WIDTH = 4096
"""Values of an example that are looked at; of more, as many evenly spaced ones, so that a sample fits in memory."""
CELL_ROWS = 20
"""Examples of the sample for each cell, at least: fewer would leave cells empty by chance."""
GRID = 24
"""Squares of the drawn density, each way."""
_BLOCK_ROWS = 1024


def in_sample(ids: I64, size: int, n: int) -> npt.NDArray[np.bool_]:
    """Return which of ids (N,) are in a sample of about `size` of n examples; all where n is no more."""
    if n <= size:
        return np.ones(len(ids), dtype=bool)
    return hash64("shift-sample", 0, ids) < np.uint64(int(size / n * 2.0**64))


def first_by_hash(ids: I64, most: int, domain: str) -> npt.NDArray[np.int64]:
    """Return the places, ascending, of at most `most` of ids (N,), uniformly drawn by their hash."""
    if len(ids) <= most:
        return np.arange(len(ids))
    return np.sort(np.argsort(hash64(domain, 0, ids))[:most])


def looked_at(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return examples (B, ...) as rows (B, d) of at most MAX_WIDTH values, in their stored type."""
    flat = x.reshape(len(x), -1)
    if flat.shape[1] <= MAX_WIDTH:
        return flat
    return flat[:, np.arange(MAX_WIDTH) * flat.shape[1] // MAX_WIDTH]


@dataclass(frozen=True)
class Features:
    """Hold the sample: example_id (N,) ascending, coordinates (N, k), cell (N,); and how others get theirs."""

    example_id: I64
    coordinates: F32
    cell: I64
    basis: F32
    centres: F32

    def place(self, x: npt.NDArray[Any]) -> F32:
        """Return the coordinates (B, k) of rows (B, d) that `looked_at` returned."""
        return project(x, self.basis)


def project(x: npt.NDArray[Any], basis: F32) -> F32:
    """Return the coordinates (B, k) float32 of rows (B, d), uint8 ones over 255, in a basis (1 + k, d): mean, components."""
    out = np.empty((len(x), len(basis) - 1), dtype=np.float32)
    for start in range(0, len(x), _BLOCK_ROWS):
        out[start : start + _BLOCK_ROWS] = (as_float(x[start : start + _BLOCK_ROWS]) - basis[0]) @ basis[1:].T
    return out


def as_float(x: npt.NDArray[Any]) -> F32:
    """Return stored values as float32, those of uint8 in [0, 1]."""
    return x.astype(np.float32) / np.float32(255) if x.dtype == np.uint8 else x.astype(np.float32)


def nearest(coordinates: F32, centres: F32) -> I64:
    """Return the cell (N,) of each row: that of its nearest centre, the first of several."""
    far = centres.astype(np.float64)
    squares = np.einsum("ij,ij->i", far, far)
    out = np.empty(len(coordinates), dtype=np.int64)
    for start in range(0, len(coordinates), _BLOCK_ROWS):
        near = coordinates[start : start + _BLOCK_ROWS].astype(np.float64)
        out[start : start + _BLOCK_ROWS] = np.argmin(squares - 2.0 * (near @ far.T), axis=1)
    return out


def fit(unit: Unit, spec: ShiftSpec, ids: I64, labels: I64, x: npt.NDArray[Any]) -> tuple[list[Part], dict[str, Any]]:
    """Fit components and cells on the sample (N,), (N,), (N, d) in ascending id; publish them and return parts and facts."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    values = as_float(x)
    scale = _scale(values)
    values *= scale
    model = PCA(min(spec.components, *values.shape), random_state=0).fit(values)
    basis = np.concatenate([model.mean_[None] / scale, model.components_ * scale]).astype(np.float32)
    coordinates = project(x, basis)
    cells = min(spec.cells, max(1, len(ids) // CELL_ROWS))
    centres = KMeans(cells, n_init=1, random_state=0).fit(coordinates).cluster_centers_.astype(np.float32)
    cell = nearest(coordinates, centres)
    few = first_by_hash(ids, spec.pairs, "shift-pairs")
    width = coordinates.shape[1]
    table = pa.table(
        {
            "example_id": ids, "label": labels, "cell": cell,
            "coordinates": pa.FixedSizeListArray.from_arrays(pa.array(coordinates.reshape(-1)), width),
        }
    )  # fmt: skip
    where = unit.store.url(unit.part_name(SAMPLE))
    parts = [unit.publish_part(SAMPLE, encode_table(table, unit.key), part_check(unit.key, where, ids))]
    for name, array in ((BASIS, basis), (CENTRES, centres)):
        parts.append(unit.publish_part(name, _array_bytes(array), _array_check(array, unit.store.url(unit.part_name(name)))))
    within = mean_within(coordinates[few], np.ones(len(few)))
    ratios = np.nan_to_num(model.explained_variance_ratio_.astype(np.float64))
    facts = {
        "sample": len(ids),
        "components": width,
        "explained": round(float(min(ratios.sum(), 1.0)), 6),
        "values": int(values.shape[1]),
        "scale": float(scale),
        "cells": int(np.count_nonzero(np.bincount(cell, minlength=cells))),
        "pairs": len(few),
        "mean_distance": None if within is None else round(within, 6),
        "density": density(coordinates),
    }
    return parts, facts


def _scale(values: F32) -> np.float32:
    """Return 1, or where values are beyond 2^40 the power of two that brings them below 1: squares of float32 end at 2^128."""
    peak = float(np.abs(values).max(initial=0.0))
    return np.float32(1.0) if peak <= 2.0**40 else np.float32(2.0 ** -math.ceil(math.log2(peak)))


def density(coordinates: F32) -> dict[str, Any]:
    """Return how many rows lie in each of GRID x GRID squares of the first two coordinates: x and y bounds, counts by y."""
    plane = in_plane(coordinates)
    bounds = [(float(low), float(high)) for low, high in zip(plane.min(axis=0), plane.max(axis=0))]
    bounds = [(low, high) if high > low else (low - 0.5, high + 0.5) for low, high in bounds]
    counts, _, _ = np.histogram2d(plane[:, 0], plane[:, 1], bins=GRID, range=bounds)
    return {
        "x": [round(value, 4) for value in bounds[0]],
        "y": [round(value, 4) for value in bounds[1]],
        "counts": counts.T.astype(int).tolist(),
    }


def in_plane(coordinates: F32) -> npt.NDArray[np.float64]:
    """Return the first two coordinates (N, 2); zeros for one that is not there."""
    plane = coordinates[:, :2].astype(np.float64)
    return np.pad(plane, ((0, 0), (0, 2 - plane.shape[1])))


def load_features(store: Store, seal: Seal) -> Features:
    """Return sealed features, verified against their seal. Raises CorruptError."""
    parts = {part.name.rpartition("/")[2]: part for part in seal.parts}
    table = load_part(store, parts[SAMPLE])
    basis, centres = (_read_array(store, parts[name]) for name in (BASIS, CENTRES))
    flat = table.column("coordinates").combine_chunks().flatten().to_numpy()
    return Features(
        table.column("example_id").to_numpy(), flat.reshape(table.num_rows, len(basis) - 1),
        table.column("cell").to_numpy(), basis, centres,
    )  # fmt: skip


def _array_bytes(array: F32) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue() + MARK + BLANK


def _as_array(data: bytes, where: str) -> F32:
    try:
        return np.asarray(np.load(io.BytesIO(data), allow_pickle=False), dtype=np.float32)
    except (ValueError, EOFError) as error:
        raise CorruptError(f"part {where} is not a readable .npy file ({error})") from error


def _read_array(store: Store, part: Part) -> F32:
    return _as_array(read_part(store, part), store.url(part.name))


def _array_check(array: F32, where: str) -> Callable[[bytes], int]:
    def check(data: bytes) -> int:
        got = _as_array(data, where)
        if got.shape != array.shape or not np.isfinite(got).all():
            raise CorruptError(f"part {where} has shape {got.shape} or holds NaN; its sample gives {array.shape}")
        return len(got)

    return check
