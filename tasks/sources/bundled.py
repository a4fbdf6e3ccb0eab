"""The classification sets that scikit-learn carries with it, by name: nothing is downloaded."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.errors import InputError
from tasks.imports import nearest
from tasks.sources.digest import digest_files
from tasks.sources.protocol import FileRef, RawExamples, Shard, cut_rows, range_shards, row_ids

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

FILES = {
    "breast_cancer": "breast_cancer.csv",
    "digits": "digits.csv.gz",
    "iris": "iris.csv",
    "wine": "wine_data.csv",
}


class BundledSource:
    """Read a bundled set. `digits` is images (1, 8, 8) float32, pixels / 16 and so in [0, 1]; the others are their
    table (d,) float32, unscaled."""

    def __init__(self, uri: str, location: str) -> None:
        if uri not in FILES:
            raise InputError(f"{location}: {uri!r} is no set that scikit-learn bundles for classification; "
                             f"{nearest(uri, list(FILES))}")
        self.name, self.location = uri, location
        self._loaded: Any = None

    def files(self) -> list[FileRef]:
        """Return the one data file in the installed package, known by the set's name."""
        found = importlib.util.find_spec("sklearn")
        if found is None or not found.submodule_search_locations:
            raise InputError("source sklearn: scikit-learn is not installed; install it, or take another source")
        folder = Path(next(iter(found.submodule_search_locations))) / "datasets" / "data"
        return digest_files(folder, [(self.name, folder / FILES[self.name])], self.location)

    def shards(self, shard_rows: int) -> list[Shard]:
        """Return the shards."""
        return range_shards(self.location, self.files()[0], cut_rows(len(self._load()[1]), shard_rows), 0)

    def _load(self) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64], list[str]]:
        if self._loaded is None:
            import numpy as np
            from sklearn import datasets

            bunch = getattr(datasets, f"load_{self.name}")()
            x = np.asarray(bunch.data, dtype=np.float32)
            if self.name == "digits":
                x = x.reshape(-1, 1, 8, 8) / np.float32(16)
            self._loaded = x, np.asarray(bunch.target, dtype=np.int64), [str(name) for name in bunch.target_names]
        x, y, names = self._loaded
        return x, y, names

    def class_names(self) -> list[str]:
        """Return the names of the classes in order."""
        return self._load()[2]

    def read(self, shard: Shard) -> RawExamples:
        """Return the shard's rows."""
        ids, labels = self.read_labels(shard)
        return RawExamples(ids, self._load()[0][shard.start : shard.start + shard.rows], labels)

    def read_labels(self, shard: Shard) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
        """Return ids and labels."""
        labels = self._load()[1][shard.start : shard.start + shard.rows]
        return row_ids(self.location, shard.relative, shard.start, shard.rows), labels
