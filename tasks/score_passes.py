"""The forward passes of the score stage: which rows each has, and their scores, taken from several passes at once."""

from __future__ import annotations

from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from cluster.errors import InputError
from cluster.record import Part, Seal
from cluster.storage import Store
from tasks.arithmetic import arithmetic, autocast, device_of
from tasks.bisection import Bisection
from tasks.dataset import Dataset
from tasks.models.build import build_model, place_model
from tasks.proxy import checkpoint_part, load_checkpoint
from tasks.recipe import Pipeline
from tasks.score import ScoreInputs, ScoreSpec, column_name
from tasks.scores.batch import Pass, forward_pass, score_batch, scores_of
from tasks.scores.registry import score_info
from tasks.slots import rows_in_own_slots
from tasks.sources.protocol import Examples, Shard

GROUP_ROWS = 2**12
GROUP_LOGITS = 2**18
"""At most so many rows, and numbers of one model's logits (1 MiB), wait for their scores to be taken together."""

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


def checkpoint_at(seal: Seal, at: float) -> Part:
    """Return a proxy's checkpoint at that share of its training. Raises InputError where it has none."""
    for part in seal.parts:
        if part.name.rpartition("/")[2] == checkpoint_part(at):
            return part
    raise InputError(
        f"proxy {seal.key[:12]} has no checkpoint at {at:g} of its training; list it among the proxies' checkpoints"
    )


class ScorePasses:
    """Hold every model that the scores read, and score the rows of shards in passes of forward_rows rows exactly."""

    def __init__(self, spec: ScoreSpec, inputs: ScoreInputs, dataset: Dataset, store: Store, allowed: int) -> None:
        self.spec, self.allowed = spec, allowed
        self.proxies = len(inputs.proxies)
        self.names: dict[float, list[str]] = {}
        for use in spec.scores:
            if score_info(use.name).by_batch:
                self.names.setdefault(use.at, []).append(use.name)
        self.pipeline = Pipeline(inputs.proxy.recipe, spec.numerics)
        self.device = device_of(spec.numerics)

        def model(seal: Seal, at: float) -> torch.nn.Module:
            checkpoint_at(seal, at)
            out = build_model(inputs.proxy.model, dataset.shape, dataset.num_classes, seed=0)
            out.load_state_dict(load_checkpoint(store, seal, at)["model"])
            return place_model(out, self.device).eval()

        self.models = {at: [model(seal, at) for seal in inputs.proxies] for at in self.names}
        self.together = self._passes_together(dataset.num_classes)

    def _passes_together(self, classes: int) -> int:
        """Return of how many passes the scores are taken at once.

        Only a model's pass needs its fixed size: on the CPU no bit of a row's scores depends on the rows beside it. An
        MLP 256-256-10 with six scores takes 0.85 ms of one core for 256 rows by 16 passes at once, 1.14 one by one
        (el2n alone: 0.72, 0.89). Of CUDA's bits it is not known, and GraNd has a pass of its own.
        """
        if self.device.type != "cpu" or any("grand" in names for names in self.names.values()):
            return 1
        return max(1, min(GROUP_ROWS, GROUP_LOGITS // classes) // self.spec.forward_rows)

    def scores(self, examples: Examples, shard: Shard) -> tuple[dict[str, F32], dict[int, tuple[str, str]]]:
        """Return each column's scores (proxies, N), NaN for bad examples, and these by id with cause and message.

        Raises OverBudgetError where more of them are bad than may be.
        """
        columns = [column_name(use) for use in self.spec.scores if score_info(use.name).by_batch]
        out = {name: np.full((self.proxies, len(examples)), np.nan, np.float32) for name in columns}
        bad: dict[int, tuple[str, str]] = {}
        with arithmetic(self.spec.numerics):
            batches = self._batches(examples, shard)
            for start in range(0, len(batches), self.together):
                group = batches[start : start + self.together]
                # An empty slot repeats an example of the pass.
                at = np.where(group < 0, group.max(1, keepdims=True), group)
                scores, fine = self._group(examples, at)
                taken = group >= 0
                taken[~fine] = False
                for column, values in scores.items():
                    out[column][:, group[taken]] = values[:, taken]
                for batch, rows in zip(group[~fine], at[~fine]):
                    bisection = Bisection(partial(self._pass, examples, rows), self.allowed, bad)
                    found, good = bisection.score(len(rows), examples.example_id[rows])
                    well = batch >= 0 if good is None else good & (batch >= 0)
                    for column, values in found.items():
                        out[column][:, batch[well]] = values[:, well]
        return out, bad

    def _batches(self, examples: Examples, shard: Shard) -> I64:
        """Return which example is in each slot of each pass, (passes, forward_rows); -1 where none is."""
        return rows_in_own_slots(examples.position - shard.position + shard.start, self.spec.forward_rows)

    def _group(self, examples: Examples, at: I64) -> tuple[dict[str, F32], npt.NDArray[np.bool_]]:
        """Return each column's scores (proxies, passes, forward_rows) and which passes came out well.

        The others, and all where one of them failed, are to be scored each alone, which finds the examples to blame.
        """
        if self.together == 1:
            return {}, np.zeros(len(at), dtype=bool)
        try:
            scores = self._scores_of_group(examples, at)
        except Exception:
            return {}, np.zeros(len(at), dtype=bool)
        found = {column: values.reshape(self.proxies, *at.shape) for column, values in scores.items()}
        return found, np.all([np.isfinite(values).all((0, 2)) for values in found.values()], axis=0)

    def _scores_of_group(self, examples: Examples, at: I64) -> dict[str, F32]:
        """Return each column's scores (proxies, rows of all passes in turn)."""
        passes: dict[tuple[float, int], list[Pass]] = {}
        for rows in at:
            inputs = self.pipeline.prepare(examples.x[rows])
            for share, names in self.names.items():
                for number, model in enumerate(self.models[share]):
                    with autocast(self.spec.numerics):
                        passes.setdefault((share, number), []).append(forward_pass(model, inputs, names))
        targets = torch.from_numpy(examples.y[at.reshape(-1)])
        out: dict[str, F32] = {}
        for (share, number), each in passes.items():
            self._fetch(scores_of(each, targets, self.names[share]), share, number, out)
        return out

    def _pass(self, examples: Examples, at: I64, slots: I64) -> dict[str, F32]:
        """Return each column's scores (proxies, forward_rows) of one pass over the examples `at`.

        A slot that is not among `slots` holds the example of the first of them: what a row is computed with must depend
        neither on the shard's size nor on which of its neighbours are bad.
        """
        if len(slots) < len(at):
            inside = np.zeros(len(at), dtype=bool)
            inside[slots] = True
            at = np.where(inside, at, at[slots[0]])
        out: dict[str, F32] = {}
        inputs = self.pipeline.prepare(examples.x[at])
        targets = torch.from_numpy(examples.y[at])
        for share, names in self.names.items():
            # One after the other: as one stack (torch.func) five took 1.1 to 1.5 times as long, with other last bits.
            for number, model in enumerate(self.models[share]):
                with autocast(self.spec.numerics):
                    scores = score_batch(model, inputs, targets, names)
                self._fetch(scores, share, number, out)
        return out

    def _fetch(self, scores: dict[str, torch.Tensor], share: float, number: int, out: dict[str, F32]) -> None:
        """Put one model's scores into its row of their columns (proxies, rows)."""
        # One fetch for all scores: each makes the CPU wait for the device.
        fetched = dict(zip(scores, torch.stack(list(scores.values())).cpu().numpy()))
        for use in self.spec.scores:
            if use.at == share and use.name in fetched:
                values = fetched[use.name]
                column = out.setdefault(column_name(use), np.empty((self.proxies, len(values)), np.float32))
                column[number] = values
