"""Scores taken from several forward passes at once: the bits of each pass alone, and the same examples to blame."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from cluster.storage import Store
from tasks import score_passes
from tasks.arithmetic import arithmetic, autocast
from tasks.dataset import Dataset
from tasks.pool import SerialPool
from tasks.proxy import ProxyInputs, ProxySpec, proxy_stage
from tasks.schemas import TRAIN
from tasks.score import ScoreInputs, ScoreSpec
from tasks.score_passes import ScorePasses
from tasks.scores import score_batch
from tasks.scores.batch import forward_pass, scores_of
from tasks.shard import shard_stage
from tasks.sources.spec import DataSpec
from tasks.spec import Numerics

NAMES = ["el2n", "loss", "entropy", "margin", "least_confidence", "grand_last"]
WIDTH, ROWS = 6, 1300
RAISES, NAN = 77.0, 88.0


def fragile(input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Return a model that raises on some inputs, and has no finite logits for others."""

    class Fragile(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if (x[:, 0] == RAISES).any():
                raise RuntimeError("no such thing")
            # Into the input of the last layer, so that its output is the logits.
            x = torch.where(x[:, :1] == NAN, torch.full_like(x, float("nan")), x)
            out: torch.Tensor = super().forward(x)
            return out

    return Fragile(nn.Linear(input_shape[0], 9), nn.ReLU(), nn.Linear(9, num_classes))


PROXY = ProxySpec.model_validate({"model": {"use": f"{__name__}:fragile"}, "seeds": 2, "steps": 30, "batch_size": 32, "lr": 0.02})


class Case:
    """Hold data of so many classes in one shard, with two proxies."""

    def __init__(self, folder: Path, classes: int) -> None:
        self.store = Store(str(folder / "store"))
        generator = np.random.default_rng(classes)
        labels = np.arange(ROWS) % classes
        x = (generator.normal(size=(ROWS, WIDTH)) * 3 + labels[:, None] % 5).astype(np.float32)
        features = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), WIDTH)
        pq.write_table(pa.table({"features": features, "label": labels}), folder / "a.parquet")
        self.data = DataSpec.model_validate(
            {"source": {"use": "parquet"}, "train": str(folder / "a.parquet"), "validation": 0.02, "test_fraction": 0.02}
        )
        self.index = shard_stage(self.data, self.store, SerialPool())
        self.proxies = proxy_stage(PROXY, ProxyInputs(self.data, self.index, (0.5, 1.0), "", 0), self.store, SerialPool())
        self.dataset = Dataset(self.data, self.index, self.store)
        (self.shard,) = self.dataset.shards("train")

    def passes(self, spec: dict[str, object], allowed: int = 0) -> ScorePasses:
        inputs = ScoreInputs(self.data, self.index, PROXY, self.proxies, "", 0)
        return ScorePasses(ScoreSpec.model_validate(spec), inputs, self.dataset, self.store, allowed)


@pytest.fixture(scope="module", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SECATEUR_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module", params=[2, 10, 1000])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("passes"), request.param)


def equal_bits(some: dict[str, np.ndarray], others: dict[str, np.ndarray]) -> bool:  # type: ignore[type-arg]
    return some.keys() == others.keys() and all(some[name].tobytes() == others[name].tobytes() for name in some)


@pytest.mark.parametrize("numerics", [{}, {"autocast": "bfloat16"}, {"threads": 2}])
@pytest.mark.parametrize("rows", [16, 97])
def test_grouped_passes_have_the_bits_of_each_alone(
    case: Case, rows: int, numerics: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = {"scores": [*NAMES, "loss@0.5", "grand_last@0.5"], "forward_rows": rows, "numerics": numerics}
    examples = case.dataset.read(case.shard, TRAIN)
    assert len(examples) % rows, "the last pass is a short one"
    together = case.passes(spec)
    monkeypatch.setattr(score_passes, "GROUP_ROWS", rows)
    alone = case.passes(spec)
    assert together.together > 1 and alone.together == 1
    found, bad = together.scores(examples, case.shard)
    expected, _ = alone.scores(examples, case.shard)
    assert equal_bits(found, expected) and not bad
    assert set(found) == {*NAMES, "loss@0.5", "grand_last@0.5"} and all(np.isfinite(values).all() for values in found.values())


def test_grouped_passes_blame_the_examples_that_each_alone_blames(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = {"scores": NAMES, "forward_rows": 16}
    examples = case.dataset.read(case.shard, TRAIN)
    together = case.passes(spec, allowed=9)
    monkeypatch.setattr(score_passes, "GROUP_ROWS", 16)
    alone = case.passes(spec, allowed=9)
    tame, _ = together.scores(examples, case.shard)
    # A pass that raises fails its whole group; one that is not finite is in a group of its own, the last and short one.
    raising, nan = [3, 4, 60], [len(examples) - 1, 70]
    examples.x[raising, 0], examples.x[nan, 0] = RAISES, NAN
    found, bad = together.scores(examples, case.shard)
    expected, blamed = alone.scores(examples, case.shard)
    assert equal_bits(found, expected) and bad == blamed
    assert set(bad) == set(examples.example_id[raising + nan].tolist())
    good = np.setdiff1d(np.arange(len(examples)), raising + nan)
    assert equal_bits({name: values[:, good] for name, values in found.items()}, {n: v[:, good] for n, v in tame.items()})
    assert all(np.isnan(values[:, raising + nan]).all() for values in found.values())


def test_only_so_much_waits_for_its_scores(case: Case) -> None:
    classes = case.dataset.num_classes
    usual = case.passes({"scores": NAMES})
    assert usual.together == (1 if classes == 1000 else 16)
    assert case.passes({"scores": NAMES, "forward_rows": 8192}).together == 1
    assert case.passes({"scores": ["el2n", "grand"], "forward_rows": 16}).together == 1


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
@pytest.mark.parametrize("classes", [2, 10, 33, 1000])
def test_scores_of_several_passes_are_those_of_each(classes: int, dtype: str | None) -> None:
    class Reusing(nn.Sequential):
        """Return the same memory each time."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = super().forward(x)
            self.kept = self.kept.copy_(out) if hasattr(self, "kept") else out.clone()
            return self.kept

    generator = torch.Generator().manual_seed(classes)
    model = Reusing(nn.Linear(20, 50), nn.ReLU(), nn.Linear(50, classes))
    inputs = torch.randn(5, 33, 20, generator=generator) * 10
    targets = torch.randint(0, classes, (5, 33), generator=generator)
    numerics = Numerics(autocast=dtype)
    with arithmetic(numerics), autocast(numerics):
        alone = [score_batch(model, x, y, NAMES) for x, y in zip(inputs, targets)]
        found = scores_of([forward_pass(model, x, NAMES) for x in inputs], targets.reshape(-1), NAMES)
    assert list(found) == NAMES
    assert all(torch.equal(found[name], torch.cat([one[name] for one in alone])) for name in NAMES)
