"""Every row is in one batch, and in a slot that does not depend on the shards."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.slots import rows_in_own_slots


@pytest.mark.parametrize("count", [0, 1, 16, 17, 100])
def test_rows_without_gaps_are_contiguous_and_the_last_batch_is_short(count: int) -> None:
    found = rows_in_own_slots(np.arange(count), 16)
    assert found.shape == (-(-count // 16), 16)
    assert found[found >= 0].tolist() == list(range(count))
    assert (found[:-1] >= 0).all()


def test_a_row_has_the_same_slot_in_any_shards() -> None:
    rows = np.flatnonzero(np.random.default_rng(0).random(5000) < 0.7)
    whole: dict[int, int] = {}
    for width in (5000, 1300, 97, 1):
        slots: dict[int, int] = {}
        for start in range(0, 5000, width):
            mine = rows[(rows >= start) & (rows < start + width)]
            found = rows_in_own_slots(mine, 64)
            for batch in found:
                for slot in np.flatnonzero(batch >= 0):
                    row = int(mine[batch[slot]])
                    assert row not in slots, "a row is in two batches"
                    slots[row] = int(slot)
        assert len(slots) == len(rows)
        whole = whole or slots
        assert slots == whole


def test_few_more_batches_are_needed_than_in_turn() -> None:
    rows = np.flatnonzero(np.random.default_rng(0).random(65536) < 0.9)
    assert len(rows_in_own_slots(rows, 256)) <= 1.08 * len(rows) / 256
    assert len(rows_in_own_slots(np.arange(65536), 256)) == 256
