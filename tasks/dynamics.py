"""What a training sees of each example while it learns: forgetting events and margins, as O(n) running state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cluster.errors import CorruptError

if TYPE_CHECKING:
    import pyarrow as pa


WAITING_LOGITS = 2**14
"""On the CPU presentations are taken together, this many logits at once: with two threads a step of 128 examples and 10 classes
then takes 0.03 ms, one by one 0.075. Above 2**15 elements torch shares an operation among all threads, and what that costs these
small ones makes it 0.6 ms. On a GPU each is taken as it comes: launches do not wait, and to ask what is distinct would."""


class DynamicsRecorder:
    """Record forgetting (Toneva 2019) and the area under the margin (Pleiss 2020) of n examples.

    A presentation is one forward pass of an example in a training batch, before that batch's update, augmentation
    included. Its margin is z_y - max_{k != y} z_k on the logits; it is correct where the margin is above 0, so a tie
    is wrong whichever class it is with. State: 18 bytes an example, on the device of the training, and at most
    WAITING_LOGITS logits, or those of one batch, that are not counted yet.
    """

    FIELDS = ("presentations", "events", "correct", "learned", "margin_sum")

    def __init__(self, n: int, device: torch.device | None = None) -> None:
        where = device or torch.device("cpu")
        self.presentations = torch.zeros(n, dtype=torch.int32, device=where)
        self.events = torch.zeros(n, dtype=torch.int32, device=where)
        # Whether the latest presentation was correct; False before the first, which therefore cannot be forgotten.
        self.correct = torch.zeros(n, dtype=torch.bool, device=where)
        self.learned = torch.zeros(n, dtype=torch.bool, device=where)
        self.margin_sum = torch.zeros(n, dtype=torch.float64, device=where)
        self._waiting: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self._room = WAITING_LOGITS if where.type == "cpu" else 0
        self._held = 0

    def observe(self, rows: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor) -> None:
        """Add one presentation of each of `rows` (B,) int64, distinct, with logits (B, K) and targets (B,).

        Rows and targets must not be changed afterwards; logits may be.
        """
        self._waiting.append((rows, logits.detach().clone(), targets))
        self._held += logits.numel()
        if self._held >= self._room:
            self._settle()

    def _settle(self) -> None:
        waiting, self._waiting, self._held = self._waiting, [], 0
        self._count_in_order(waiting)

    def _count_in_order(self, waiting: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> None:
        """Count what waits: all at once where no example comes twice, else one half after the other."""
        if len(waiting) == 1:
            self._count(*waiting[0])
        elif waiting:
            rows, logits, targets = (torch.cat(pieces) for pieces in zip(*waiting))
            if bool(rows.sort().values.diff().all()):
                self._count(rows, logits, targets)
            else:
                half = len(waiting) // 2
                self._count_in_order(waiting[:half])
                self._count_in_order(waiting[half:])

    @torch.no_grad()
    def _count(self, rows: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor) -> None:
        column = targets.unsqueeze(1)
        own, other = logits.gather(1, column).squeeze(1), logits.scatter(1, column, float("-inf")).amax(1)
        margin = own.double() - other.double()
        correct = margin > 0
        forgotten = self.correct.index_select(0, rows) & ~correct
        self.presentations.index_add_(0, rows, torch.ones_like(rows, dtype=torch.int32))
        self.events.index_add_(0, rows, forgotten.int())
        self.correct.index_copy_(0, rows, correct)
        self.learned.index_copy_(0, rows, self.learned.index_select(0, rows) | correct)
        self.margin_sum.index_add_(0, rows, margin)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the state as CPU tensors."""
        self._settle()
        return {name: getattr(self, name).cpu().clone() for name in self.FIELDS}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Take back what `state_dict` gave. Raises CorruptError when it is of another number of examples."""
        self._waiting, self._held = [], 0
        for name in self.FIELDS:
            mine, theirs = getattr(self, name), state[name]
            if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
                raise CorruptError(f"recorder state {name} has {tuple(theirs.shape)} values, not {tuple(mine.shape)}")
            mine.copy_(theirs)

    def table(self, example_id: np.ndarray[Any, np.dtype[np.int64]]) -> pa.Table:
        """Return schemas.DYNAMICS, in the order of `example_id` (n,), which is that of the rows.

        `forgetting` is the ranking value: events, or presentations + 1 where the example was never correct, which is
        above all others of as many presentations. An example that was never presented has presentations 0, is never
        learned, and has aum 0.
        """
        import pyarrow as pa

        from tasks.schemas import DYNAMICS

        self._settle()
        shown = self.presentations.cpu()
        events, learned = self.events.cpu(), self.learned.cpu()
        ranking = torch.where(learned, events, shown + 1).float()
        aum = (self.margin_sum.cpu() / shown.clamp(min=1)).float()
        columns = [example_id, shown.numpy(), events.numpy(), (~learned).numpy(), ranking.numpy(), aum.numpy()]
        return pa.table([pa.array(column) for column in columns], schema=DYNAMICS)
