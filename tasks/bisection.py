"""Find the examples that spoil a batch, so that their neighbours are scored all the same, with the same bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from cluster.errors import SecateurError
from tasks.quarantine import NON_FINITE_SCORE, SCORING_FAILED, plain_message

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
Scores = dict[str, F32]
"""Columns (proxies, rows) of one batch."""


class OverBudgetError(Exception):
    """Signal that more examples are bad than may be; `found` are those seen so far."""

    def __init__(self, found: dict[int, tuple[str, str]]) -> None:
        super().__init__(f"{len(found)} examples cannot be scored")
        self.found = found


@dataclass
class Bisection:
    """Score batches by `run(slots)`, which must run a whole batch with every slot that is not asked for replaced by one
    that is: a row keeps its place in a pass of full size, and so its bits.

    `allowed` is how many examples of all batches together may be bad. OverBudgetError is raised as soon as it is known
    that there are more: a model that fails on everything costs some log2(rows) + 2 (allowed + 1) passes and no more.
    What is no example's fault (memory, a device in error, wrong input) comes out as it is.
    """

    run: Callable[[I64], Scores]
    allowed: int
    found: dict[int, tuple[str, str]] = field(default_factory=dict)

    def score(self, count: int, ids: I64) -> tuple[Scores, npt.NDArray[np.bool_] | None]:
        """Return the columns of a batch, and which of its `count` slots are good: None for all of them.

        The values of the others mean nothing; they are in `found` by the example's id, as (error class, message).
        """
        every = np.arange(count)
        scores, error = self._try(every)
        if scores is not None and all(np.isfinite(values[:, :count]).all() for values in scores.values()):
            return scores, None
        self._search(every, ids, scores, error)
        good = np.array([int(example) not in self.found for example in ids[:count]], dtype=bool)
        if not good.any():
            return {}, good
        scores, error = self._try(np.flatnonzero(good))
        if error is not None:
            # Each of them alone was well: what fails is the batch, and no example.
            raise error
        assert scores is not None
        if len(_spoiled(scores, np.flatnonzero(good))):
            raise ArithmeticError("scores are not finite in company though each alone is: the model mixes examples of a batch")
        return scores, good

    def _try(self, slots: I64) -> tuple[Scores | None, Exception | None]:
        try:
            return self.run(slots), None
        except (SecateurError, MemoryError, torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except Exception as error:
            return None, error

    def _search(self, slots: I64, ids: I64, scores: Scores | None, error: Exception | None) -> None:
        """Put every slot that fails alone into `found`, given what a pass over all of `slots` came to."""
        if error is None:
            assert scores is not None
            spoiled = _spoiled(scores, slots)
            if not len(spoiled):
                return None
            if len(spoiled) < len(slots):
                # The others came out finite: only these can be to blame.
                return self._search(spoiled, ids, *self._try(spoiled))
        if len(slots) == 1:
            cause = (NON_FINITE_SCORE, _columns(scores, slots)) if scores is not None else (SCORING_FAILED, _said(error))
            self.found[int(ids[slots[0]])] = cause
            if len(self.found) > self.allowed:
                raise OverBudgetError(self.found)
            return None
        for half in np.array_split(slots, 2):
            self._search(half, ids, *self._try(half))
        return None


def _said(error: Exception | None) -> str:
    return plain_message(error) if error is not None else ""


def _spoiled(scores: Scores, slots: I64) -> I64:
    """Return the slots in which some score is not finite."""
    bad = np.zeros(len(slots), dtype=bool)
    for values in scores.values():
        bad |= ~np.isfinite(values[:, slots]).all(axis=0)
    return slots[bad]


def _columns(scores: Scores, slots: I64) -> str:
    names = [name for name, values in scores.items() if not np.isfinite(values[:, slots]).all()]
    proxies = sorted({int(p) for name in names for p in np.flatnonzero(~np.isfinite(scores[name][:, slots]).all(axis=1))})
    return f"{', '.join(names)} of proxies {proxies} is not finite"
