"""MNIST-1D (Greydanus & Kobak 2020, arXiv 2011.14439), made by the generator of its package: any number of rows."""

from __future__ import annotations

import contextlib
import random
import uuid
import zipfile
from collections.abc import Iterator
from importlib import metadata
from typing import TYPE_CHECKING, Any

from cluster.errors import InputError
from cluster.fingerprint import canonical_json, sha256
from tasks.sources.digest import cache_folder
from tasks.sources.protocol import TEST_LOCATION, FileRef, RawExamples, Shard, cut_rows, range_shards, row_ids

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    Arrays = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]

NAME = "mnist1d"
CLASSES, LENGTH = 10, 40
MOST_ROWS, MOST_SEED = 1_000_000, 2**32 - 1


class Mnist1dSource:
    """Make signals (40,) float32 of ten classes: `rows` for the train location and `test` for the test location.

    Both are one draw of the generator, which shuffles and normalises them together, so that another `rows`, `test` or `seed`
    is another data set: for nested sizes take `data.limit`. What was made is kept beside the cached digests (0.2 to 0.4 ms a
    row to make, on one core). Global random state is left as it was. Raises InputError where the package is not installed.
    """

    def __init__(self, uri: str, location: str, *, rows: int = 4000, test: int = 50_000, seed: int = 42) -> None:
        if uri != NAME:
            raise InputError(f"{location}: {uri!r} is nothing that source {NAME} makes; give data.{location}: {NAME}")
        for name, value, low, high in (("rows", rows, 1, MOST_ROWS), ("test", test, 1, MOST_ROWS), ("seed", seed, 0, MOST_SEED)):
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise InputError(f"source {NAME}: {name} is {str(value)[:80]!r}; give a whole number from {low} to {high}")
        if (rows + test) % CLASSES:
            raise InputError(
                f"source {NAME}: rows {rows} and test {test} are {rows + test} together; the generator makes as many of each "
                f"of {CLASSES} classes: give numbers whose sum {CLASSES} divides"
            )
        self.location, self.rows, self.test, self.seed = location, rows, test, seed
        self._made: Arrays | None = None

    def files(self) -> list[FileRef]:
        """Return one ref that stands for the generator: its version and what it is asked for are the content."""
        count = self.test if self.location == TEST_LOCATION else self.rows
        return [FileRef(NAME, f"{NAME}:{self.location}", self._digest(), count * LENGTH * 4)]

    def _digest(self) -> str:
        try:
            version = metadata.version(NAME)
        except metadata.PackageNotFoundError:
            raise InputError(
                f"source {NAME}: the package {NAME} is not installed; install it with: pip install {NAME}, or take another source"
            ) from None
        return sha256(canonical_json([NAME, version, self.rows, self.test, self.seed], NAME))

    def shards(self, shard_rows: int) -> list[Shard]:
        """Return the shards. Makes the rows where they are not kept yet: workers on this machine then find them."""
        self._load()
        file = self.files()[0]
        count = self.test if self.location == TEST_LOCATION else self.rows
        return range_shards(self.location, file, cut_rows(count, shard_rows, LENGTH * 4), 0)

    def read(self, shard: Shard) -> RawExamples:
        """Return the shard's rows."""
        ids, labels = self.read_labels(shard)
        return RawExamples(ids, self._load()[0][shard.start : shard.start + shard.rows], labels)

    def read_labels(self, shard: Shard) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
        """Return ids and labels."""
        labels = self._load()[1][shard.start : shard.start + shard.rows]
        return row_ids(self.location, shard.relative, shard.start, shard.rows), labels

    def _load(self) -> Arrays:
        if self._made is None:
            kept = cache_folder().with_name(NAME) / f"{self._digest()[:32]}.npz"
            found = _read(kept, self.rows + self.test)
            if found is None:
                found = generate(self.rows, self.test, self.seed)
                _keep(kept, found)
            mine = slice(self.rows, None) if self.location == TEST_LOCATION else slice(self.rows)
            self._made = found[0][mine], found[1][mine]
        return self._made


def generate(rows: int, test: int, seed: int) -> Arrays:
    """Return signals (rows + test, 40) and classes, train rows first, as the package's generator makes them."""
    import numpy as np

    with _own_randomness():
        # Imports matplotlib and requests, of which it uses neither here.
        from mnist1d.data import get_dataset_args, make_dataset

        settings = get_dataset_args()
        settings.num_samples, settings.train_split, settings.seed = rows + test, rows / (rows + test), seed
        made = make_dataset(settings)
    # Put together and cut by count: the generator rounds its share down, which may be one row off.
    x = np.concatenate([made["x"], made["x_test"]]).astype(np.float32)
    return x, np.concatenate([made["y"], made["y_test"]]).astype(np.int64)


@contextlib.contextmanager
def _own_randomness() -> Iterator[None]:
    """Put the global streams, which the generator seeds, back to where they were."""
    import numpy as np

    own, numpys = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(own)
        np.random.set_state(numpys)


def _read(path: Path, count: int) -> Arrays | None:
    """Return what is kept, or None where nothing is, or it is not whole."""
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as kept:
            x, y = kept["x"], kept["y"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return (x, y) if x.shape == (count, LENGTH) and y.shape == (count,) else None


def _keep(path: Path, arrays: Arrays) -> None:
    import numpy as np

    # A cache that cannot be written costs time, never a result.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.parent / f".{uuid.uuid4().hex}.npz"
        try:
            np.savez(scratch, x=arrays[0], y=arrays[1])
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)
