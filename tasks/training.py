"""The training loop of proxies and final models, on one worker or as one rank of several."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from cluster.errors import CorruptError, InputError, StageError
from tasks.arithmetic import arithmetic, autocast, device_of, isolated_rng, ordered_attention, seed_all
from tasks.models.build import place_model
from tasks.ordering import BatchOrder, rank_slice
from tasks.recipe import Pipeline
from tasks.rotation import Rotation
from tasks.seeding import derive_seed
from tasks.soft_labels import SoftTargets
from tasks.sources.protocol import Examples
from tasks.spec import Numerics

log = logging.getLogger("secateur.training")

SEEDS = 256
"""Seeds of steps that are derived at once: one alone, between steps that empty the caches, takes 35 µs; of many each 1.4."""

State = dict[str, Any]


@dataclass(frozen=True)
class TrainingArrays:
    """Hold a training set in memory: x (N, ...) as stored, y (N,) int64, w (N,) float32, example_id (N,) int64.

    With a `rotation` every epoch shows m of the N rows, drawn anew; with `soft` the loss is that of soft labels too.
    """

    x: np.ndarray[Any, Any]
    y: np.ndarray[Any, np.dtype[np.int64]]
    w: np.ndarray[Any, np.dtype[np.float32]]
    example_id: np.ndarray[Any, np.dtype[np.int64]]
    rotation: Rotation | None = None
    soft: SoftTargets | None = None

    @property
    def per_epoch(self) -> int:
        """Return how many examples an epoch shows."""
        return len(self.y) if self.rotation is None else self.rotation.size

    def __post_init__(self) -> None:
        count = len(self.x)
        lengths = {"y": len(self.y), "w": len(self.w), "example_id": len(self.example_id)}
        if self.soft is not None:
            lengths["soft"] = len(self.soft.probabilities)
        wrong = {name: length for name, length in lengths.items() if length != count}
        if wrong:
            raise InputError(f"training arrays differ in length: x has {count} rows, {wrong}; give one row an example")
        if not count:
            raise InputError("there is no example to train on; keep more examples")
        if not np.isfinite(self.w).all() or (self.w < 0).any() or not (self.w > 0).any():
            raise InputError("training weights must be finite, not negative, and not all zero; check the selection")


def weightless(examples: Examples) -> TrainingArrays:
    """Return a split as a training set in which every example has weight 1. Shares its memory."""
    return TrainingArrays(examples.x, examples.y, np.ones(len(examples), dtype=np.float32), examples.example_id)


@dataclass(frozen=True)
class Settings:
    """Hold the numbers of one training. `weighting` is loss or draw (see tasks.train.TrainSpec)."""

    steps: int
    seed: int
    batch_size: int
    lr: float
    weight_decay: float
    numerics: Numerics = field(default_factory=Numerics)
    checkpoint_every_s: float = 15.0
    weighting: str = "loss"


class Recorder(Protocol):
    """Watch the presentations of a training (tasks.dynamics.DynamicsRecorder)."""

    def observe(self, rows: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor) -> None: ...
    def state_dict(self) -> dict[str, torch.Tensor]: ...
    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None: ...


@dataclass(frozen=True)
class TrainResult:
    """Hold what a training ended with: steps done, the loss of its last batch, distinct examples shown."""

    steps: int
    final_loss: float
    examples_touched: int


def train_model(
    model: nn.Module,
    data: TrainingArrays,
    settings: Settings,
    pipeline: Pipeline,
    *,
    start: State | None = None,
    report: Callable[[dict[str, float]], None] | None = None,
    checkpoint: Callable[[State], None] | None = None,
    snapshots: Collection[int] = (),
    snapshot: Callable[[int, dict[str, torch.Tensor]], None] | None = None,
    recorder: Recorder | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> TrainResult:
    """Train `model` in place, moved to the device of the settings, and return how it ended.

    The loss of a step is sum(w * loss) / B over the global batch, where B is the true number of its examples: the last
    batch of an epoch is kept, however short, and divided by its own size. Batches, augmentation and every random stream
    of a step (dropout) are functions of (seed, step), and the weights of the model are the caller's, so a training that
    goes on from `start` ends in the same bytes as one that was never stopped (on CUDA but for operations that have no
    deterministic kernel, of which torch warns). A batch, or a rank's slice, of a single row has no variance: batch norm
    layers use their running statistics for it. Global random state, thread count and
    kernel choices are restored at the end.

    `checkpoint(state)` is called at ends of epochs, not more often than checkpoint_every_s (0: at every one), on rank 0
    with tensors that are its own; `snapshot(step, model state)` after each of the steps `snapshots` (0: before the
    first), once more for the step `start` is at; `report(metrics)` at ends of epochs, on every rank.

    With world_size > 1 every rank calls this inside an initialised process group with the same arguments but `rank`.
    Each computes its slice of every global batch, empty slices included, and the gradient is that of the sum above.
    Batch norm statistics are those of each rank's slice; rank 0's running statistics stand.

    Raises StageError when the loss is not finite, InputError when a piece of the recipe does not fit.
    """
    loop = _Loop(model, data, settings, pipeline, recorder=recorder, rank=rank, world_size=world_size)
    with arithmetic(settings.numerics), ordered_attention(loop.device), isolated_rng():
        return loop.run(start, report, checkpoint, set(snapshots), snapshot)


class _Loop:
    def __init__(
        self,
        model: nn.Module,
        data: TrainingArrays,
        settings: Settings,
        pipeline: Pipeline,
        *,
        recorder: Recorder | None,
        rank: int,
        world_size: int,
    ) -> None:
        if recorder is not None and world_size > 1:
            raise InputError("dynamics are recorded by one worker only; train proxies with world_size 1")
        if recorder is not None and (settings.weighting == "draw" or data.rotation is not None):
            raise InputError("dynamics need every example once an epoch; train proxies with weighting loss, on all data")
        self.data, self.settings, self.pipeline, self.recorder = data, settings, pipeline, recorder
        self.rank, self.world_size = rank, world_size
        self.device = device_of(settings.numerics)
        draw = settings.weighting == "draw"
        self.order = BatchOrder(
            data.example_id, settings.batch_size, settings.seed, data.w if draw else None, data.rotation
        )
        self.weights = np.ones(len(data.w), dtype=np.float32) if draw else data.w.astype(np.float32, copy=False)
        self.model = place_model(model, self.device)
        self.optimizer = pipeline.optimizer(self.model.parameters(), settings.lr, settings.weight_decay)
        self.schedule = pipeline.schedule(self.optimizer, settings.steps, settings.lr)
        self.norms = [m for m in self.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self.loss = torch.zeros((), device=self.device)
        self.step = 0
        self._seeds: dict[int, int] = {}

    def state(self) -> State:
        """Return all that `resume` needs. The random streams are no part of it: they are functions of (seed, step)."""
        return {
            "step": self.step,
            "steps": self.settings.steps,
            "loss": float(self.loss),
            "model": own_state(self.model),
            "optimizer": _owned(self.optimizer.state_dict()),
            "schedule": _owned(self.schedule.state_dict()),
            "recorder": None if self.recorder is None else self.recorder.state_dict(),
        }

    def resume(self, state: State) -> None:
        if state["steps"] != self.settings.steps or (state["recorder"] is None) != (self.recorder is None):
            raise CorruptError(f"checkpoint of {state['steps']} steps given to one of {self.settings.steps}")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.recorder is not None:
            self.recorder.load_state_dict(state["recorder"])
        self.loss = torch.tensor(state["loss"], device=self.device)
        self.step = state["step"]

    def run(
        self,
        start: State | None,
        report: Callable[[dict[str, float]], None] | None,
        checkpoint: Callable[[State], None] | None,
        snapshots: set[int],
        snapshot: Callable[[int, dict[str, torch.Tensor]], None] | None,
    ) -> TrainResult:
        if start is not None:
            self.resume(start)
        self.model.train()
        forward = self._distributed() if self.world_size > 1 else self.model
        if snapshot is not None and self.step in snapshots:
            snapshot(self.step, own_state(self.model))
        written = time.monotonic()
        while self.step < self.settings.steps:
            self.loss = self._one_step(forward)
            self.step += 1
            if self.step < self.settings.steps:
                self.schedule.step()
            if snapshot is not None and self.step in snapshots:
                self._check_loss()
                snapshot(self.step, own_state(self.model))
            if self.step % self.order.batches and self.step < self.settings.steps:
                continue
            self._check_loss()
            due = time.monotonic() - written >= self.settings.checkpoint_every_s
            if checkpoint is not None and self.rank == 0 and due:
                checkpoint(self.state())
                written = time.monotonic()
            if report is not None:
                epoch = self.step / self.order.batches
                report({"step": self.step, "steps": self.settings.steps, "epoch": epoch, "loss": float(self.loss)})
        self._check_loss()
        return TrainResult(self.step, float(self.loss), self.order.touched(self.step))

    def _distributed(self) -> nn.Module:
        from torch.nn.parallel import DistributedDataParallel

        devices = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(self.model, device_ids=devices)

    def _check_loss(self) -> None:
        if not torch.isfinite(self.loss):
            raise StageError(
                f"training diverged: the loss is {float(self.loss)} at step {self.step} of {self.settings.steps} "
                f"with lr {self.settings.lr:g}; the loss must stay finite. Lower lr, or check the transform and weights"
            )

    def _batch(self) -> tuple[np.ndarray[Any, np.dtype[np.int64]], torch.Tensor, torch.Tensor, int]:
        """Return this rank's rows, inputs and weights, and the size of the global batch."""
        rows = self.order.batch(self.step)
        mine = rank_slice(len(rows), self.rank, self.world_size)
        chosen, weights = rows[mine], self.weights[rows[mine]]
        if not len(chosen):
            # Every rank must take part in the exchange of gradients: an empty slice computes one row of weight 0.
            chosen, weights, mine = rows[:1], np.zeros(1, dtype=np.float32), slice(0, 1)
        if self.pipeline.augments:
            # A function of the global batch, so that it is the same for any number of ranks.
            inputs = self.pipeline.augment(
                self.pipeline.prepare(self.data.x[rows]), self.settings.seed, self.step
            )[mine]
        else:
            inputs = self.pipeline.prepare(self.data.x[chosen])
        return chosen, inputs, self.pipeline.move(weights), len(rows)

    def _seed(self) -> int:
        """Return the seed of the random streams of this step."""
        if self.step not in self._seeds:
            steps = range(self.step, self.step + SEEDS)
            self._seeds = {step: derive_seed("step", self.settings.seed, step, self.rank) for step in steps}
        return self._seeds[self.step]

    def _one_step(self, forward: nn.Module) -> torch.Tensor:
        seed_all(self._seed())
        rows, inputs, weights, global_size = self._batch()
        targets = self.pipeline.move(self.data.y[rows])
        single = self.norms if len(rows) == 1 else []
        for norm in single:
            norm.eval()
        with autocast(self.settings.numerics):
            logits = forward(inputs)
        logits = logits.float()
        if self.recorder is not None:
            self.recorder.observe(self.pipeline.move(rows), logits, targets)
        losses = self.pipeline.loss(logits, targets)
        if self.data.soft is not None:
            losses = self.data.soft.loss(losses, logits, self.pipeline.move(self.data.soft.probabilities[rows]))
        part = (weights * losses).sum() / global_size
        self.optimizer.zero_grad(set_to_none=True)
        # DistributedDataParallel divides the sum of the ranks' gradients by their number.
        total = part * self.world_size if self.world_size > 1 else part
        total.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        for norm in single:
            norm.train()
        loss = part.detach()
        if self.world_size > 1:
            torch.distributed.all_reduce(loss)
        return loss


def own_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the model's state as contiguous CPU tensors that share no memory with it, under plain names."""
    return {name: _own(value) for name, value in model.state_dict().items()}


def _own(value: torch.Tensor) -> torch.Tensor:
    return value.detach().to("cpu", copy=True).contiguous()


def _owned(value: Any) -> Any:
    """Return nested state with tensors copied to the CPU, layouts kept."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {name: _owned(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_owned(item) for item in value)
    return value
