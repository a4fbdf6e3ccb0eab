"""Penultimate features of the proxies: what goes into their last linear layer at the end of their training."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cluster.errors import InputError
from cluster.storage import Store
from tasks.arithmetic import arithmetic, autocast, device_of
from tasks.dataset import Dataset
from tasks.hashing import I64
from tasks.models.build import build_model, place_model
from tasks.proxy import load_checkpoint
from tasks.recipe import Pipeline
from tasks.score import ScoreInputs, ScoreSpec
from tasks.scores.grand_last import LastLinear
from tasks.scores.state import scoring
from tasks.selection.features import InputFeatures
from tasks.slots import rows_in_own_slots
from tasks.sources.protocol import Examples, Shard

F32 = npt.NDArray[np.float32]


class ProxyFeatures(InputFeatures):
    """Read what the proxies make of stored inputs: the inputs of their last linear layers side by side, in the order of the
    proxies, on the arithmetic and with the passes of the score stage."""

    def __init__(self, dataset: Dataset, components: int, spec: ScoreSpec, inputs: ScoreInputs, store: Store) -> None:
        super().__init__(dataset, components)
        self.spec = spec
        self.pipeline = Pipeline(inputs.proxy.recipe, spec.numerics)
        self.device = device_of(spec.numerics)
        self.models: list[torch.nn.Module] = []
        for seal in inputs.proxies:
            model = build_model(inputs.proxy.model, dataset.shape, dataset.num_classes, seed=0)
            model.load_state_dict(load_checkpoint(store, seal)["model"])
            self.models.append(place_model(model, self.device).eval())

    @cached_property
    def width(self) -> int:
        """Return the features of all proxies together."""
        with arithmetic(self.spec.numerics):
            blank = np.zeros((self.spec.forward_rows, *self.dataset.shape), dtype=self.dataset.dtype)
            return int(self._pass(blank).shape[1])

    def numbers(self, examples: Examples, at: I64, shard: Shard) -> npt.NDArray[Any]:
        """Return the features (n, d) of the examples `at` (n,) of a shard; no bit depends on how data are cut into shards."""
        out = np.empty((len(at), self.width), dtype=np.float32)
        size = self.spec.forward_rows
        rows = examples.position[at] - shard.position + shard.start
        # As in scoring: the last bits of a row can depend on its slot.
        batches = rows_in_own_slots(rows, size)
        with arithmetic(self.spec.numerics):
            for batch in batches:
                taken = batch >= 0
                found = self._pass(examples.x[at[np.where(taken, batch, batch.max())]])
                out[batch[taken]] = found[taken]
        return out

    def _pass(self, x: npt.NDArray[Any]) -> F32:
        """Return the features (forward_rows, d) of one pass over stored inputs x (forward_rows, ...)."""
        inputs = self.pipeline.prepare(x)
        found = []
        with torch.no_grad():
            for model in self.models:
                with scoring(model, self.device), LastLinear(model) as last, autocast(self.spec.numerics):
                    logits = model(inputs.clone())
                found.append(_penultimate(last, logits))
            return np.asarray(torch.cat(found, dim=1).cpu().numpy())


def _penultimate(last: LastLinear, logits: torch.Tensor) -> torch.Tensor:
    try:
        features, _ = last.features(logits)
    except InputError as error:
        raise InputError(
            f"features: proxy are the inputs of the layer whose outputs are the logits, a linear one called once, and this proxy "
            f"has none ({error}); use features: pca"
        ) from error
    return features.flatten(1)
