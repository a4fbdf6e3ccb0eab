"""The worker of the train stage: trains final models one after the other, or is one rank of a training of several."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from cluster.errors import CorruptError, StageError
from cluster.record import Part, Seal, Unit, read_part
from cluster.storage import Store
from tasks.arithmetic import device_of
from tasks.checkpoints import checkpoint_check, decode_state, encode_checkpoint
from tasks.curve import Accuracies, Curve, grid
from tasks.dataset import Dataset
from tasks.evaluation import class_percent, correctness_table, percent_correct, predict
from tasks.models.build import build_model, place_model
from tasks.recipe import Pipeline
from tasks.rotation import rotates, rotation_of
from tasks.schemas import TEST, TRAIN, VALIDATION
from tasks.soft_labels import SoftTargets, teacher_probabilities
from tasks.sources.protocol import Examples
from tasks.sources.spec import DataSpec
from tasks.tables import encode_table, footer_of, load_part, part_check
from tasks.train import Report, TrainItem, TrainJob, TrainSpec, TrainUnit
from tasks.training import Settings, State, TrainingArrays, TrainResult, own_state, train_model, weightless
from tasks.work import UnitResult, Work

TEST_PART, VALIDATION_PART, MODEL_PART = "test.parquet", "validation.parquet", "model.pt"


class TrainWorker:
    """Train final models. Evaluation splits, and the full train split once a unit asks for it, stay in memory."""

    def __init__(self, spec: TrainSpec, data: DataSpec, index: Seal, store: Store) -> None:
        self.spec, self.store = spec, store
        self.dataset = Dataset(data, index, store)
        self.pipeline = Pipeline(spec.recipe, spec.numerics)
        # Test labels are read here and nowhere before.
        self.evaluation: dict[str, Examples] = {TEST_PART: self.dataset.load(TEST)}
        validation = self.dataset.load(VALIDATION)
        if len(validation):
            self.evaluation[VALIDATION_PART] = validation
        self._full: TrainingArrays | None = None

    def load(self, item: TrainItem) -> TrainingArrays:
        """Return the training set of a unit, in memory in its stored dtype."""
        return self.arrays(item.unit)

    def compute(self, item: TrainItem, loaded: TrainingArrays) -> UnitResult:
        """Train one model, from its newest checkpoint where there is one, evaluate its last step, publish the parts."""
        run = TrainRun(self, item.key, item.unit, loaded)
        parts = run.published()
        if parts is None:
            start = run.work.newest()
            parts = run.evaluate(run.train(start[1] if start else None))
        return run.result(parts)

    def arrays(self, unit: TrainUnit) -> TrainingArrays:
        """Return the training set of a unit: its subset with its weights, or the full train split with weight 1.

        Where the protocol draws anew every epoch it is the full train split with the rotation over it; where the unit has a
        teacher it holds its predictions.
        """
        chosen = self._rows_of(unit)
        return chosen if unit.teacher is None else replace(chosen, soft=self._taught(unit.teacher, chosen.x))

    def _rows_of(self, unit: TrainUnit) -> TrainingArrays:
        if unit.selection is not None and rotates(unit.selection):
            whole = self._whole()
            rotation, weights = rotation_of(unit.selection, whole.example_id, self.store)
            return replace(whole, w=weights, rotation=rotation)
        if unit.subset is None:
            return self._whole()
        from tasks.subset import SubsetDataset

        folder = Unit(self.store, "subset", unit.subset.key).folder
        example_id, x, y, w = SubsetDataset(self.store.url(folder)).arrays()
        return TrainingArrays(np.asarray(x), np.asarray(y), np.asarray(w), np.asarray(example_id))

    def _taught(self, teacher: str, x: np.ndarray[Any, Any]) -> SoftTargets:
        """Return the predictions of the model that the unit under the key `teacher` kept, for examples x (N, ...)."""
        spec = self.spec
        assert spec.soft_labels is not None
        seal = Unit(self.store, "train", teacher).seal()
        if seal is None:
            raise StageError(f"the teacher {teacher[:12]} is not sealed, and its student was to begin; run again")
        part = next(part for part in seal.parts if part.name.rpartition("/")[2] == MODEL_PART)
        state = decode_state(read_part(self.store, part), self.store.url(part.name))
        model = build_model(spec.model, self.dataset.shape, self.dataset.num_classes, 0)
        model.load_state_dict(state["model"])
        model = place_model(model, device_of(spec.numerics))
        temperature = spec.soft_labels.temperature
        found = teacher_probabilities(model, x, self.pipeline, spec.numerics, temperature)
        return SoftTargets(found, temperature, spec.soft_labels.mix)

    def _whole(self) -> TrainingArrays:
        if self._full is None:
            self._full = weightless(self.dataset.load(TRAIN))
        return self._full


class TrainRun:
    """Do the steps of one training: find what is published, train, evaluate, say what the seal states."""

    def __init__(self, worker: TrainWorker, key: str, unit: TrainUnit, arrays: TrainingArrays) -> None:
        self.worker, self.key, self.plan, self.arrays = worker, key, unit, arrays
        self.unit = Unit(worker.store, "train", key)
        self.work = Work(self.unit, "model")
        self.model = build_model(worker.spec.model, worker.dataset.shape, worker.dataset.num_classes, unit.seed)
        self.curve = Curve(grid(worker.spec.curve, unit.steps)) if worker.spec.curve else None

    def published(self) -> dict[str, Part] | None:
        """Return the parts where all of them are published, else None."""
        parts: dict[str, Part] = {}
        for name in (*self.worker.evaluation, *((MODEL_PART,) if self.plan.keeps_model else ())):
            found = self.unit.find_part(name, self._check(name))
            if found is None:
                return None
            parts[name] = found
        return parts

    def _check(self, name: str) -> Any:
        where = self.worker.store.url(self.unit.part_name(name))
        if name == MODEL_PART:
            return checkpoint_check(self.key, where)
        return part_check(self.key, where, self.worker.evaluation[name].example_id)

    def train(
        self, start: State | None, report: Report | None = None, rank: int = 0, world_size: int = 1
    ) -> TrainResult:
        """Train the model to its last step."""
        spec = self.worker.spec
        settings = Settings(
            steps=self.plan.steps, seed=self.plan.seed, batch_size=spec.batch_size, lr=spec.lr,
            weight_decay=spec.weight_decay, numerics=spec.numerics, checkpoint_every_s=spec.checkpoint_every_s,
            weighting=spec.weighting,
        )
        curve = self.curve
        if curve is not None:
            curve.begin(None if start is None else start["curve"])

        def save(state: State) -> None:
            self.work.save(state if curve is None else {**state, "curve": curve.state()})

        def look(step: int, _: dict[str, torch.Tensor]) -> None:
            # All ranks hold the same weights: rank 0 evaluates, and the others wait for it in the next exchange of gradients.
            if curve is not None and rank == 0 and step not in curve.found:
                curve.pause()
                curve.add(step, self._accuracies(self._predicted()))

        return train_model(
            self.model, self.arrays, settings, self.worker.pipeline,
            start=start, report=report, checkpoint=save, rank=rank, world_size=world_size,
            # The last step is evaluated when the training is over, with a curve and without.
            snapshots=() if curve is None else [step for step in curve.steps if step < self.plan.steps], snapshot=look,
        )

    def _predicted(self) -> dict[str, Any]:
        """Return the predictions (N,) of the model as it is for every evaluation split."""
        worker = self.worker
        return {
            name: predict(self.model, split.x, worker.pipeline, worker.spec.numerics) for name, split in worker.evaluation.items()
        }

    def _accuracies(self, predicted: dict[str, Any]) -> Accuracies:
        found = {name: percent_correct(self.worker.evaluation[name].y, values) for name, values in predicted.items()}
        return found[TEST_PART], found.get(VALIDATION_PART)

    def evaluate(self, ended: TrainResult) -> dict[str, Part]:
        """Evaluate the model as it is, on every evaluation split, and publish one part each, and the model if it is kept."""
        parts: dict[str, Part] = {}
        if self.curve is not None:
            self.curve.pause()
        predicted = self._predicted()
        # The facts lie in the footer, so that a seal can be made from the published parts alone.
        facts: dict[str, Any] = {"final_loss": ended.final_loss, "examples_touched": ended.examples_touched}
        if self.curve is not None:
            self.curve.add(ended.steps, self._accuracies(predicted))
            self.curve.publish_times(self.unit)
            facts["curve"] = self.curve.record()
        for name, split in self.worker.evaluation.items():
            table = correctness_table(split.example_id, split.y, predicted[name])
            parts[name] = self.unit.publish_part(name, encode_table(table, self.key, **facts), self._check(name))
        if self.plan.keeps_model:
            state = encode_checkpoint(self.key, ended.steps, own_state(self.model))
            parts[MODEL_PART] = self.unit.publish_part(MODEL_PART, state, self._check(MODEL_PART))
        return parts

    def result(self, parts: dict[str, Part]) -> UnitResult:
        """Return what the seal states, read from the published parts: accuracies in percent, of the last step."""
        test = load_part(self.worker.store, parts[TEST_PART])
        facts = footer_of(test, self.worker.store.url(parts[TEST_PART].name))
        label, predicted = test.column("label").to_numpy(), test.column("predicted").to_numpy()
        validation: float | None = None
        if VALIDATION_PART in parts:
            table = load_part(self.worker.store, parts[VALIDATION_PART])
            validation = percent_correct(table.column("label").to_numpy(), table.column("predicted").to_numpy())
        meta = {
            "steps": self.plan.steps,
            "batch_size": self.worker.spec.batch_size,
            "world_size": self.worker.spec.world_size,
            "weighting": self.worker.spec.weighting,
            "seed": self.plan.seed,
            "num_kept": self.arrays.per_epoch,
            "examples_touched": facts["examples_touched"],
            "final_loss": facts["final_loss"],
            "accuracy": percent_correct(label, predicted),
            "validation_accuracy": validation,
            "class_accuracy": class_percent(label, predicted, self.worker.dataset.num_classes),
        }
        if self.curve is not None:
            meta["curve"] = facts["curve"]
        if self.plan.teacher is not None:
            assert self.worker.spec.soft_labels is not None
            meta["soft_labels"] = {"teacher": self.plan.teacher, **self.worker.spec.soft_labels.identity()}
        return UnitResult(list(parts.values()), meta)


def run_rank(job: TrainJob, rank: int, world_size: int, report: Report) -> None:
    """Be one rank of a training, inside an initialised process group (the contract is at the top of tasks.train)."""
    distributed = torch.distributed
    if not distributed.is_initialized() or distributed.get_world_size() != world_size:
        raise StageError(f"{job}: a process group of {world_size} ranks must be initialised before run_train_job")
    if world_size != job.spec.world_size:
        raise StageError(f"{job}: {world_size} workers were started, its spec says {job.spec.world_size}")
    worker = TrainWorker(job.spec, job.data, job.index, job.store)
    run = TrainRun(worker, job.key, job.unit, worker.arrays(job.unit))
    choice: list[Any] = [None, None]
    if rank == 0:
        if run.unit.seal() is not None:
            choice = ["sealed", None]
        else:
            parts, start = run.published(), run.work.newest()
            choice = ["train" if parts is None else "seal", start[0] if start else None]
    # One rank looks, all act on what it saw: a listing can change between two looks.
    distributed.broadcast_object_list(choice, src=0)
    act, name = choice
    if act == "train":
        state = _chosen(run.work, name)
        ended = run.train(state, report, rank, world_size)
        if rank == 0:
            run.evaluate(ended)
    if rank == 0 and act != "sealed":
        published = run.published()
        if published is None:
            raise CorruptError(f"{job}: a part that was just published is gone; something else removes from this store")
        result = run.result(published)
        run.unit.publish_seal(result.parts, result.meta)


def _chosen(work: Work, name: str | None) -> State | None:
    return None if name is None else work.load(name)
