"""The worker of the proxy stage: trains proxies one after the other on a train split it loads once."""

from __future__ import annotations

import logging
from typing import Any

import torch

from cluster.record import Part, Unit, read_part
from cluster.storage import Store
from tasks.checkpoints import checkpoint_check, decode_state, encode_checkpoint
from tasks.dataset import Dataset
from tasks.dynamics import DynamicsRecorder
from tasks.evaluation import percent_correct, predict
from tasks.models.build import build_model
from tasks.proxy import ProxyInputs, ProxyItem, ProxySpec, checkpoint_part, checkpoint_steps
from tasks.recipe import Pipeline
from tasks.schemas import TRAIN, VALIDATION
from tasks.tables import encode_table, part_check
from tasks.training import Settings, train_model, weightless
from tasks.work import UnitResult, Work

log = logging.getLogger("secateur.proxy")

DYNAMICS_PART = "dynamics.parquet"


class ProxyWorker:
    """Train proxies; the train and validation splits stay in memory, in their stored dtype, from one to the next."""

    def __init__(self, spec: ProxySpec, inputs: ProxyInputs, store: Store) -> None:
        self.spec, self.inputs, self.store = spec, inputs, store
        self.dataset = Dataset(inputs.data, inputs.index, store)
        self.pipeline = Pipeline(spec.recipe, spec.numerics)
        self.train = self.dataset.load(TRAIN)
        self.validation = self.dataset.load(VALIDATION)
        self.steps = spec.steps_for(len(self.train.y))

    def load(self, item: ProxyItem) -> None:
        """Load nothing: proxies differ in their seed only."""

    def compute(self, item: ProxyItem, loaded: None) -> UnitResult:
        """Train one proxy, from its newest checkpoint where there is one, and publish its parts."""
        return _Proxy(self, item).run()


class _Proxy:
    def __init__(self, worker: ProxyWorker, item: ProxyItem) -> None:
        self.worker, self.item = worker, item
        self.unit = Unit(worker.store, "proxy", item.key)
        self.work = Work(self.unit, "model")
        self.parts: dict[str, Part] = {}
        self.final: dict[str, torch.Tensor] | None = None
        self.steps_at = checkpoint_steps(worker.inputs.checkpoints, worker.steps)

    def run(self) -> UnitResult:
        names = [checkpoint_part(at) for at in self.steps_at]
        for name in names:
            found = self.unit.find_part(name, self._checkpoint_check(name))
            if found is not None:
                self.parts[name] = found
        dynamics = self.unit.find_part(DYNAMICS_PART, self._dynamics_check())
        if dynamics is None or len(self.parts) < len(names):
            dynamics = self._train()
        self.parts[DYNAMICS_PART] = dynamics
        if unseen := self._never_presented():
            log.warning(
                "%s: %d of %d examples are in no batch of its %d steps; their forgetting and aum say nothing",
                self.item, unseen, len(self.worker.train), self.worker.steps,
            )
        return UnitResult(list(self.parts.values()), self._meta())

    def _checkpoint_check(self, name: str) -> Any:
        return checkpoint_check(self.item.key, self.worker.store.url(self.unit.part_name(name)))

    def _dynamics_check(self) -> Any:
        where = self.worker.store.url(self.unit.part_name(DYNAMICS_PART))
        return part_check(self.item.key, where, self.worker.train.example_id)

    def _train(self) -> Part:
        worker, spec, ids = self.worker, self.worker.spec, self.worker.train.example_id
        # A checkpoint beyond a snapshot that is not published could not take it any more.
        missing = [step for at, step in self.steps_at.items() if checkpoint_part(at) not in self.parts]
        latest = min(missing, default=worker.steps)
        start = self.work.newest(lambda step: step <= latest)
        recorder = DynamicsRecorder(len(ids), worker.pipeline.device)
        settings = Settings(
            steps=worker.steps, seed=self.item.seed, batch_size=spec.batch_size, lr=spec.lr,
            weight_decay=spec.weight_decay, numerics=spec.numerics, checkpoint_every_s=spec.checkpoint_every_s,
        )
        train_model(
            build_model(spec.model, worker.dataset.shape, worker.dataset.num_classes, self.item.seed),
            weightless(worker.train),
            settings,
            worker.pipeline,
            start=start[1] if start else None,
            checkpoint=self.work.save,
            snapshots=set(self.steps_at.values()),
            snapshot=self._snapshot,
            recorder=recorder,
        )
        data = encode_table(recorder.table(ids), self.item.key)
        return self.unit.publish_part(DYNAMICS_PART, data, self._dynamics_check())

    def _snapshot(self, step: int, model: dict[str, torch.Tensor]) -> None:
        data: bytes | None = None
        for at, wanted in self.steps_at.items():
            name = checkpoint_part(at)
            if wanted == step and name not in self.parts:
                data = data or encode_checkpoint(self.item.key, step, model)
                self.parts[name] = self.unit.publish_part(name, data, self._checkpoint_check(name))

    def _never_presented(self) -> int:
        worker = self.worker
        return max(0, len(worker.train) - worker.steps * worker.spec.batch_size)

    def _meta(self) -> dict[str, Any]:
        """Return the facts of the seal, taken from the published last checkpoint, whoever trained it."""
        worker = self.worker
        part = self.parts[checkpoint_part(1.0)]
        state = decode_state(read_part(worker.store, part), worker.store.url(part.name))
        model = build_model(worker.spec.model, worker.dataset.shape, worker.dataset.num_classes, self.item.seed)
        model.load_state_dict(state["model"])
        model.to(worker.pipeline.device)
        accuracy = {}
        for name, split in (("train", worker.train), ("validation", worker.validation)):
            predicted = predict(model, split.x, worker.pipeline, worker.spec.numerics)
            accuracy[f"{name}_accuracy"] = percent_correct(split.y, predicted)
        return {
            "number": self.item.number,
            "seed": self.item.seed,
            "steps": worker.steps,
            "batch_size": worker.spec.batch_size,
            # Above 0 where training is shorter than an epoch: scores from dynamics do not exist then.
            "never_presented": self._never_presented(),
            **accuracy,
            "checkpoints": {f"{at!r}": checkpoint_part(at) for at in self.steps_at},
        }
