"""Features of the members of a band: their stored inputs, or what the proxies make of them, in principal components."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cluster.errors import InputError
from cluster.storage import Store
from tasks.dataset import Dataset
from tasks.hashing import I64, hash64
from tasks.native_threads import one_native_thread
from tasks.schemas import TRAIN
from tasks.selection.prototypes import FeatureReader, Features
from tasks.selection.spec import PROXY, SelectionSpec
from tasks.sources.protocol import Examples, Shard

if TYPE_CHECKING:
    from tasks.selecting import SelectInputs

F32 = npt.NDArray[np.float32]

MAX_BYTES = 2**31
"""Bytes that the features of a band have at most, 4 a component: with 40 of them, 13 million members."""

FIT_ROWS, FIT_VALUES = 2**14, 2**25
"""Members that components are fitted on at most, and their numbers: 0.7 GiB with the copies of the fit."""

_EXACT_WIDTH = 2048
# Of a product of so many rows, no bit of one depends on the others, nor on its place.
_BLOCK = 256


def feature_reader(spec: SelectionSpec, inputs: SelectInputs, store: Store) -> FeatureReader:
    """Return what reads the features that the selection asks for. Raises InputError where there are no proxies to read."""
    dataset, params = Dataset(inputs.data, inputs.index, store), spec.params()
    if params["features"] == PROXY:
        # torch takes 1.7 s to import.
        from tasks.selection.proxy_features import ProxyFeatures

        if inputs.scoring is None or not inputs.scoring[1].proxies:
            raise InputError(
                "features: proxy, and there are no proxies: the scores are your own, or need none; use features: pca"
            )
        return ProxyFeatures(dataset, params["components"], *inputs.scoring, store)
    return InputFeatures(dataset, params["components"])


class InputFeatures:
    """Read stored inputs, flattened: uint8 over 255, float32 as they are, without the recipe's transform."""

    def __init__(self, dataset: Dataset, components: int) -> None:
        self.dataset, self.components = dataset, components

    @property
    def width(self) -> int:
        """Return d, the numbers of one example."""
        return math.prod(self.dataset.shape)

    def numbers(self, examples: Examples, at: I64, shard: Shard) -> npt.NDArray[Any]:
        """Return the numbers (n, d) of the examples `at` (n,) of a shard; no bit depends on how data are cut into shards."""
        x = examples.x[at].reshape(len(at), -1)
        return x.astype(np.float32) / np.float32(255) if x.dtype == np.uint8 else x

    def __call__(self, ids: I64) -> Features:
        """Return the principal components (N, c) float32 of the numbers of members, their mean taken out, not scaled.

        c is the least of `components`, d and N. They are fitted by scikit-learn's PCA on all members, or on the 2^14 (fewer
        where d is above 2048) of least hash, and are the numbers themselves where d is at most `components`. Shards with
        members are read once, or twice where not all members are fitted on; memory is the sample's and 4 bytes a component.
        """
        width = self.width
        count = min(self.components, width, len(ids))
        facts: dict[str, Any] = {"feature_width": width, "feature_components": count, "fitted_on": 0}
        if len(ids) * count * 4 > MAX_BYTES:
            raise InputError(
                f"the band has {len(ids)} members of {count} components, {len(ids) * count * 4} bytes, and a worker holds "
                f"{MAX_BYTES} at most; lower width or components, or use band, which reads no features"
            )
        if width <= self.components or len(ids) < 2:
            whole = np.empty((len(ids), width), dtype=np.float32)
            for place, values in self._rows(ids):
                whole[place] = values
            return Features(whole, {**facts, "feature_components": width})
        fitted = min(len(ids), max(self.components, min(FIT_ROWS, FIT_VALUES // width)))
        sample = np.sort(ids[np.argsort(hash64("features", 0, ids))[:fitted]])
        read = np.empty((fitted, width), dtype=np.float32)
        for place, values in self._rows(sample):
            read[place] = values
        with one_native_thread():
            pca = _fit(read, count)
            out = np.empty((len(ids), count), dtype=np.float32)
            if fitted == len(ids):
                _project(pca, read, np.arange(fitted), out)
            else:
                for place, values in self._rows(ids):
                    _project(pca, values, place, out)
        return Features(out, {**facts, "fitted_on": fitted})

    def _rows(self, ids: I64) -> Iterator[tuple[I64, npt.NDArray[Any]]]:
        """Yield (places among ids (n,), numbers (n, d)) of every shard that holds some of them."""
        seen = 0
        for shard in self.dataset.shards():
            table = self.dataset.index_table(shard)
            here = table.column("example_id").to_numpy()[table.column("split").to_numpy() == TRAIN]
            if not _places(here, ids)[1].any():
                continue
            examples = self.dataset.read(shard, TRAIN)
            place, inside = _places(examples.example_id, ids)
            at = np.flatnonzero(inside)
            seen += len(at)
            yield place[at], self.numbers(examples, at, shard)
        if seen != len(ids):
            raise InputError(
                f"{len(ids)} examples are in the band, of which the data hold {seen}: the score table was made from other data; "
                "score this index"
            )


def _places(wanted: I64, ids: I64) -> tuple[I64, npt.NDArray[np.bool_]]:
    """Return where each of `wanted` (n,) would be among ids (N,) ascending, and whether it is there."""
    place = np.searchsorted(ids, wanted)
    place[place == len(ids)] = 0
    return place, ids[place] == wanted


def _fit(sample: F32, count: int) -> Any:
    """Return scikit-learn's PCA of a sample (F, d): exact to d = 2048, randomised above."""
    from sklearn.decomposition import PCA

    solver = "covariance_eigh" if sample.shape[1] <= _EXACT_WIDTH else "randomized"
    return PCA(count, svd_solver=solver, random_state=0).fit(sample.astype(np.float64))


def _project(pca: Any, values: npt.NDArray[Any], place: I64, out: F32) -> None:
    """Write the components of values (n, d) into the rows `place` (n,) of `out`: equal rows have equal ones, to the bit."""
    for start in range(0, len(values), _BLOCK):
        block = values[start : start + _BLOCK].astype(np.float64)
        rows = len(block)
        if rows < _BLOCK:
            block = np.concatenate([block, np.zeros((_BLOCK - rows, block.shape[1]))])
        out[place[start : start + rows]] = pca.transform(block)[:rows]
