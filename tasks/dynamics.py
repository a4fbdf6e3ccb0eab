"""What a training sees of each example while it learns: forgetting events and margins, as O(n) running state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cluster.errors import CorruptError

if TYPE_CHECKING:
    import pyarrow as pa


class DynamicsRecorder:
    """Record forgetting (Toneva 2019) and the area under the margin (Pleiss 2020) of n examples.

    A presentation is one forward pass of an example in a training batch, before that batch's update, augmentation
    included. Its margin is z_y - max_{k != y} z_k on the logits; it is correct where the margin is above 0, so a tie
    is wrong whichever class it is with. State: 18 bytes an example, on the device of the training.
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

    @torch.no_grad()
    def observe(self, rows: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor) -> None:
        """Add one presentation of each of `rows` (B,) int64, distinct, with logits (B, K) and targets (B,)."""
        scores = logits.detach().double()
        target = scores.gather(1, targets[:, None])[:, 0]
        margin = target - scores.scatter(1, targets[:, None], float("-inf")).amax(1)
        correct = margin > 0
        self.presentations[rows] += 1
        self.events[rows] += (self.correct[rows] & ~correct).int()
        self.correct[rows] = correct
        self.learned[rows] |= correct
        self.margin_sum[rows] += margin

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return the state as CPU tensors."""
        return {name: getattr(self, name).cpu().clone() for name in self.FIELDS}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Take back what `state_dict` gave. Raises CorruptError when it is of another number of examples."""
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

        shown = self.presentations.cpu()
        events, learned = self.events.cpu(), self.learned.cpu()
        ranking = torch.where(learned, events, shown + 1).float()
        aum = (self.margin_sum.cpu() / shown.clamp(min=1)).float()
        columns = [example_id, shown.numpy(), events.numpy(), (~learned).numpy(), ranking.numpy(), aum.numpy()]
        return pa.table([pa.array(column) for column in columns], schema=DYNAMICS)
