"""The train stage: one final model a unit (arm, keep, replicate), evaluated at its last step on the test split.

How several workers train one model (`world_size` > 1). `train_stage` calls, once for each unit that is not sealed,

    launch(job, name, world_size, resources)

with `job` a picklable `TrainJob`, `name` = "train-<key12>" (stable over attempts: the name under which a launcher may
resume), and the spec's `world_size` and `resources` (of each worker). The launcher must start `world_size` processes
that form one torch.distributed process group (gloo on CPU, nccl on CUDA, each rank's CUDA device made current), call

    run_train_job(job, rank, world_size, report)

in every one of them, and return when all have returned, or raise when one raised. `report(metrics: dict[str, float])`
is called by every rank the same number of times, at the same steps; it may be a barrier. Rank 0 alone writes: the work
checkpoints, the parts and the seal, all through the store and create-only. A job that is started again goes on from
the newest checkpoint in the store: rank 0 chooses it and broadcasts the choice. Nothing is returned by value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import field_validator, model_validator

from cluster.errors import InputError, StageError
from cluster.fingerprint import stage_key
from cluster.record import Seal, Unit
from tasks.budget import check_length, steps_of
from tasks.curve import MOST_POINTS
from tasks.leasing import Do, Terms, do_leased, in_pool, share_units
from tasks.spec import Numerics, Recipe, Resources, Spec, Use, setting
from tasks.versions import minor_version

if TYPE_CHECKING:
    from cluster.storage import Store
    from tasks.pool import Pool
    from tasks.sources.spec import DataSpec
    from tasks.train_worker import TrainWorker

VERSION = 2


LATER = ("own_schedule", "soft_labels", "curve")
"""Settings that came when keys had been given out: one that is not asked for is no part of an identity."""


class SoftLabels(Spec):
    """Say how a student learns from its teacher (the formula is that of tasks.soft_labels.SoftTargets)."""

    temperature: float = setting(1.0, identity=True, gt=0, le=1000, doc="T, by which both logits are divided.")
    mix: float = setting(1.0, identity=True, gt=0, le=1, doc="Share of the teacher in the loss; 1 leaves the labels out.")


class TrainSpec(Spec):
    """Say how the final models are trained. Exactly one of `steps` and `epochs` is given."""

    model: Use = setting(..., identity=True, doc="Model: mlp, cnn, cnn1d, resnet18, or package.module:callable.")
    batch_size: int = setting(128, identity=True, ge=1, doc="Examples of a step, over all workers.")
    steps: int | None = setting(None, identity=True, ge=1, doc="Optimiser steps, the same for every arm and keep.")
    epochs: float | None = setting(None, identity=True, gt=0, doc="Passes over the subset, instead of steps.")
    min_steps: int = setting(0, identity=True, ge=0, doc="Least optimiser steps where epochs are given.")
    lr: float = setting(3e-3, identity=True, gt=0, doc="Learning rate; the peak of the default one-cycle schedule.")
    weight_decay: float = setting(0.01, identity=True, ge=0, doc="Weight decay of the optimizer.")
    weighting: str = setting(
        "loss", identity=True, pattern="^(loss|draw)$",
        doc="loss: weights multiply the loss. draw: batches are drawn with probability proportional to the weight and "
        "the loss weight is 1, so that weights reach BatchNorm statistics too.",
    )
    recipe: Recipe = setting(Recipe(), identity=True, doc="Transform, augment, loss, optimizer, schedule, collate.")
    numerics: Numerics = setting(Numerics(), identity=True, doc="Device, autocast and threads of training.")
    world_size: int = setting(1, identity=True, ge=1, doc="Workers that train one model together.")
    replicates: int = setting(5, identity=True, ge=1, doc="Fresh selections and trainings of every arm.")
    full: bool = setting(True, identity=True, doc="Train on the full train split too.")
    own_schedule: bool = setting(
        False, identity=True, doc="Train on the full data for its own number of steps too, which is that of keep 1."
    )
    soft_labels: SoftLabels | None = setting(
        None, identity=True, doc="Train on random's subset with the labels of the full-data model too: true, or a section."
    )
    curve: int = setting(
        0, identity=True, ge=0, le=MOST_POINTS, doc="Points, evenly spaced over the steps of each training, at which it is "
        "evaluated on test and validation too; 0 for the last step alone."
    )
    checkpoint_every_s: float = setting(
        15.0, identity=False, ge=0, doc="Least seconds between checkpoints to resume from; 0 writes one every epoch."
    )
    resources: Resources = setting(Resources(), identity=False, doc="How the stage is run; of each worker.")

    @field_validator("soft_labels", mode="before")
    @classmethod
    def _switch(cls, value: Any) -> Any:
        # `soft_labels: true` takes the defaults.
        return {True: {}, False: None}[value] if isinstance(value, bool) else value

    def identity(self) -> dict[str, Any]:
        """Return the fields that change the result; those of LATER only where they are asked for, as keys were made before."""
        return {name: value for name, value in super().identity().items() if value or name not in LATER}

    @model_validator(mode="after")
    def _lengths(self) -> TrainSpec:
        check_length("train", self.steps, self.epochs)
        if self.min_steps and self.steps is not None:
            raise InputError(f"train: min_steps is {self.min_steps} beside steps; it goes with epochs, leave it out")
        if self.world_size > self.batch_size:
            raise InputError(
                f"train: world_size {self.world_size} is above batch_size {self.batch_size}: some workers would never "
                "have an example; use fewer workers or a larger batch"
            )
        if self.soft_labels is not None and not self.full:
            raise InputError("train: soft_labels come from the model of the full data; set full: true, or leave them out")
        if self.own_schedule and (not self.full or self.steps is not None):
            raise InputError(
                "train: own_schedule trains on the full data for the steps that its own epochs take, beside full at equal steps; "
                "give epochs instead of steps, and full: true, or leave it out"
            )
        return self

    def steps_for(self, num_examples: int) -> int:
        """Return the optimiser steps: `steps`, or max(min_steps, ceil(epochs * batches of an epoch))."""
        return max(self.min_steps, steps_of(self.steps, self.epochs, self.batch_size, num_examples))


@dataclass(frozen=True)
class TrainUnit:
    """Name one training: what it is for, the subset it reads (None: the full train split), and its seed and steps.

    `seed` is that of initialisation and order: another one in every replicate, shared by all arms of a replicate.
    `keeps_model` publishes the trained weights as a part of their own; `teacher` is the key of a unit that did, from whose
    predictions this one learns too.
    """

    arm: str
    keep: float
    replicate: int
    subset: Seal | None
    selection: Seal | None
    steps: int
    seed: int
    teacher: str | None = None
    keeps_model: bool = False

    def __str__(self) -> str:
        return f"{self.arm} keep {self.keep:g} replicate {self.replicate}"


@dataclass(frozen=True)
class TrainInputs:
    """Hold what the train stage reads: data, its index, the digest of user code, and the units with their keys."""

    data: DataSpec
    index: Seal
    code: str
    units: list[tuple[str, TrainUnit]]


@dataclass(frozen=True)
class TrainItem:
    """Name one training to do in a warm worker."""

    key: str
    unit: TrainUnit

    def __str__(self) -> str:
        return f"train {self.unit} ({self.key[:12]})"


@dataclass(frozen=True)
class TrainJob:
    """Hold everything one training needs, picklable: what a launcher carries to every rank."""

    spec: TrainSpec
    data: DataSpec
    index: Seal
    key: str
    unit: TrainUnit
    store: Store

    def __str__(self) -> str:
        return f"train {self.unit} ({self.key[:12]})"


Report = Callable[[dict[str, float]], None]
Launch = Callable[[TrainJob, str, int, Resources], None]


def train_key(
    spec: TrainSpec, *, keep: float, seed: int, source_key: str, index_key: str, code: str, teacher: str | None = None,
    keeps_model: bool = False,
) -> str:
    """Return the key of one training; arms with the same subset and seed share it.

    `source_key` is the key of the subset's selection, or of the index for the full train split; `teacher` and `keeps_model`
    are those of the unit.
    """
    apart = ("replicates", "full", "own_schedule", "soft_labels")
    identity = {name: value for name, value in spec.identity().items() if name not in apart}
    identity.update(keep=keep, seed=seed)
    if keeps_model:
        identity["keeps_model"] = True
    if teacher is not None:
        assert spec.soft_labels is not None
        identity["soft_labels"] = spec.soft_labels.identity()
    digests = {"code": code, "torch": minor_version("torch")}
    sources = [source_key, index_key] if teacher is None else [source_key, index_key, teacher]
    return stage_key("train", VERSION, identity, sources, digests)


def train_stage(
    spec: TrainSpec, inputs: TrainInputs, store: Store, pool: Pool, launch: Launch | None = None
) -> list[Seal]:
    """Train the units that are not there yet and return the seals, in the order of the units.

    Parts of each: test.parquet and validation.parquet (schemas.CORRECTNESS, by ascending example_id; validation only
    where there is a validation split); and model.pt of units that keep theirs. With `curve` seal.meta holds the curve, and
    times.json beside it, unsealed, how long the training had taken by each of its steps (tasks.curve).

    Units under one key are trained once; one that another process holds by its lease is waited for; those with a teacher come
    after all others. `launch` is needed where world_size > 1.
    """
    units: dict[str, TrainUnit] = {}
    for key, unit in inputs.units:
        units.setdefault(key, unit)
    do: Do
    if spec.world_size > 1:
        do = partial(_launched, spec, inputs, units, store, launch)
    else:
        items = [TrainItem(key, unit) for key, unit in units.items()]
        make = partial(_worker, spec, inputs.data, inputs.index, store)
        do = in_pool("train", items, make, store, pool, spec.resources)
    seals: dict[str, Seal] = {}
    for taught in (False, True):
        wave = [key for key, unit in units.items() if (unit.teacher is not None) == taught]
        if wave:
            seals |= share_units("train", wave, store, do)
    return [seals[key] for key, _ in inputs.units]


def _worker(spec: TrainSpec, data: DataSpec, index: Seal, store: Store) -> TrainWorker:
    # torch takes 1.7 s to import: only workers need it.
    from tasks.train_worker import TrainWorker

    return TrainWorker(spec, data, index, store)


def _launched(
    spec: TrainSpec, inputs: TrainInputs, units: dict[str, TrainUnit], store: Store, launch: Launch | None,
    keys: Sequence[str], terms: Terms, done: int,
) -> Iterator[tuple[str, Seal | None]]:
    """Train one unit after the other, each by several workers; this process holds the lease."""
    if launch is None:
        raise InputError(
            f"train: world_size is {spec.world_size}, which needs the cluster's launcher; set world_size: 1 here"
        )
    for key in keys:
        job = TrainJob(spec, inputs.data, inputs.index, key, units[key], store)
        yield key, do_leased(Unit(store, "train", key), terms, partial(_launch, job, launch))


def _launch(job: TrainJob, launch: Launch) -> Seal:
    launch(job, f"train-{job.key[:12]}", job.spec.world_size, job.spec.resources)
    sealed = Unit(job.store, "train", job.key).seal()
    if sealed is None:
        raise StageError(f"{job}: all workers returned but nothing is sealed; run again to resume it")
    return sealed


def run_train_job(job: TrainJob, rank: int, world_size: int, report: Report) -> None:
    """Be one rank of a training, inside an initialised process group (see the top of this module)."""
    from tasks.train_worker import run_rank

    run_rank(job, rank, world_size, report)
