"""Read back which test examples each training got right: what comparisons rest on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cluster.errors import CorruptError, InputError
from cluster.record import Part, Seal
from cluster.storage import Store
from tasks.comparison import Sample
from tasks.report.inputs import ArmResult

if TYPE_CHECKING:
    import numpy as np

    Ints = np.ndarray[Any, np.dtype[np.int64]]
    Bools = np.ndarray[Any, np.dtype[np.bool_]]

# Points by which a sealed accuracy may differ from its own table of test predictions.
AGREEMENT = 1e-3


class Correctness:
    """Read which test examples a training got right, each training once."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.read: dict[str, tuple[Ints, Bools]] = {}
        self.ids: Ints | None = None

    def sample(self, arm: ArmResult) -> Sample:
        """Return the arm's replicates. Raises CorruptError, and InputError for arms of other test examples."""
        import numpy as np

        accuracy = np.array([float(seal.meta["accuracy"]) for seal in arm.trains])
        # None, a class without test examples, becomes NaN.
        by_class = np.array([seal.meta["class_accuracy"] for seal in arm.trains], dtype=float)
        return Sample(accuracy, np.stack([self._of(arm, seal) for seal in arm.trains]), by_class, arm.draws_as_random)

    def _of(self, arm: ArmResult, seal: Seal) -> Bools:
        import numpy as np

        from tasks.tables import load_part

        if seal.key not in self.read:
            part = part_named(seal, "test.parquet")
            table = load_part(self.store, part, ["example_id", "label", "predicted"])
            ids = table.column("example_id").to_numpy()
            order = np.argsort(ids, kind="stable")
            right = (table.column("label").to_numpy() == table.column("predicted").to_numpy())[order]
            share, stated = 100.0 * float(right.mean()) if len(right) else 0.0, float(seal.meta["accuracy"])
            if abs(share - stated) > AGREEMENT:
                raise CorruptError(
                    f"training {seal.key[:12]} of arm {arm.name!r}: its seal states a test accuracy of {stated:.4f} %, "
                    f"its predictions in {self.store.url(part.name)} give {share:.4f} %"
                )
            self.read[seal.key] = ids[order], right
        ids, right = self.read[seal.key]
        if self.ids is None:
            self.ids = ids
        if not np.array_equal(ids, self.ids):
            raise InputError(
                f"training {seal.key[:12]} of arm {arm.name!r} was tested on {len(ids)} examples that are not the "
                f"{len(self.ids)} of the other arms: arms are compared on one test set"
            )
        return right


def part_named(seal: Seal, name: str) -> Part:
    """Return the part of a seal whose last name is `name`. Raises CorruptError."""
    for part in seal.parts:
        if part.name.rpartition("/")[2] == name:
            return part
    raise CorruptError(f"the seal of {seal.stage} {seal.key[:12]} lists no part {name!r}")
