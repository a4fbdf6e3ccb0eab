"""The stages on the GPU: throughput of scoring and training beside bare loops, and the quickstart from end to end."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.gpu_scoring import numerics_of
from benchmarks.gpu_timing import Bench
from cluster.record import Seal
from cluster.storage import Store
from flows.config import parse_config
from flows.plan import Plan, make_plan
from tasks.arithmetic import arithmetic, autocast
from tasks.dynamics import DynamicsRecorder
from tasks.merge import MergeInputs, merge_stage
from tasks.models.build import build_model
from tasks.pool import SerialPool
from tasks.proxy import ProxyInputs, ProxySpec, proxy_stage
from tasks.recipe import Pipeline
from tasks.score import ScoreInputs, ScoreSpec, score_stage
from tasks.selecting import SelectInputs, selection_stage
from tasks.shard import shard_stage
from tasks.sources.spec import DataSpec
from tasks.spec import Numerics, Recipe, Use
from tasks.subset import SubsetInputs, subset_stage
from tasks.train import TrainInputs, TrainUnit, train_stage
from tasks.training import Settings, TrainingArrays, train_model

ROOT = Path(__file__).resolve().parents[1]
SHAPE, CLASSES = (1, 28, 28), 10


def synthetic(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return bytes (rows, 1, 28, 28) around the centres of ten classes, and labels."""
    rng = np.random.default_rng(seed)
    y = np.arange(rows, dtype=np.int64) % CLASSES
    centres = rng.integers(90, 160, (CLASSES, *SHAPE), dtype=np.int16)
    noise = rng.integers(-90, 90, (rows, *SHAPE), dtype=np.int16)
    return (centres[y] + noise).clip(0, 255).astype(np.uint8), y


def write_parquet(path: Path, rows: int, group: int = 8192) -> DataSpec:
    """Write synthetic examples as Parquet and return how they are read."""
    x, y = synthetic(rows)
    features = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), int(np.prod(SHAPE)))
    pq.write_table(pa.table({"features": features, "label": y}), path, row_group_size=group, use_dictionary=["label"])
    source = {"use": "parquet", "args": {"shape": list(SHAPE)}}
    return DataSpec.model_validate({"source": source, "train": str(path), "test_fraction": 0.1, "shard_rows": group})


class TimedPool(SerialPool):
    """Be the serial pool, and remember the seconds of making the worker, of every load and of every compute."""

    def __init__(self) -> None:
        super().__init__()
        self.made, self.loads, self.computes = 0.0, list[float](), list[float]()

    def map(self, make_worker: Callable[[], Any], items: Sequence[Any], **_: Any) -> Iterator[tuple[int, Any]]:
        """Map, with a clock."""
        start = time.perf_counter()
        worker = make_worker()
        self.made = time.perf_counter() - start
        for index, item in enumerate(items):
            times = [time.perf_counter()]
            loaded = worker.load(item)
            times.append(time.perf_counter())
            result = worker.compute(item, loaded)
            times.append(time.perf_counter())
            self.loads.append(times[1] - times[0])
            self.computes.append(times[2] - times[1])
            yield index, result


def scoring(bench: Bench) -> None:
    """Measure the score stage on Parquet, shard by shard, beside a bare loop over the same rows."""
    header = (
        "model", "arithmetic", "rows a pass", "start s", "read rows/s", "score + publish rows/s", "bare loop rows/s",
        "of the bare loop", "peak GiB",
    )  # fmt: skip

    def rows() -> Iterator[tuple[object, ...]]:
        with tempfile.TemporaryDirectory() as folder:
            data = write_parquet(Path(folder) / "data.parquet", 1024 if bench.quick else 49152, 256 if bench.quick else 8192)
            store = Store(f"{folder}/store")
            cases = [("mlp", None, 256), ("mlp", None, 4096), ("cnn", None, 256), ("cnn", None, 2048)]
            cases += [("resnet18", None, 256), ("resnet18", "bfloat16", 256), ("resnet18", "bfloat16", 2048)]
            for model, dtype, size in cases[:1] if bench.quick else cases:
                yield (model, dtype or "float32", size, *_scoring(bench, store, data, model, numerics_of(bench, dtype), size))

    bench.table("The score stage, el2n, one proxy, serial pool", header, rows())


def _scoring(
    bench: Bench, store: Store, data: DataSpec, name: str, numerics: Numerics, size: int
) -> tuple[object, ...]:
    index = shard_stage(data, store, SerialPool())
    proxy = ProxySpec(model=Use(use=name), seeds=1, steps=5, numerics=numerics)
    proxies = proxy_stage(proxy, ProxyInputs(data, index, (1.0,), "", 0), store, SerialPool())
    pool, memory = TimedPool(), list[float]()
    spec = ScoreSpec(scores=("el2n",), forward_rows=size, numerics=numerics)  # type: ignore[arg-type]
    with bench.peak(memory):
        seal = score_stage(spec, ScoreInputs(data, index, proxy, proxies, "", 0), store, pool)
    each = seal.meta["num_rows"] / len(pool.computes)
    x, y = synthetic(round(each))
    model = build_model(Use(use=name), SHAPE, CLASSES, 0).to(bench.device).eval()

    def bare() -> None:
        kept = []
        with torch.inference_mode():
            for at in range(0, len(x), size):
                inputs = torch.from_numpy(x[at : at + size]).to(bench.device, non_blocking=True).float().div_(255)
                labels = torch.from_numpy(y[at : at + size]).to(bench.device, non_blocking=True)
                with autocast(numerics):
                    logits = model(inputs)
                p = logits.float().softmax(1)
                kept.append((p - torch.nn.functional.one_hot(labels, CLASSES)).norm(dim=1))
        torch.cat(kept).cpu().numpy()

    with arithmetic(numerics):
        loop = each / bench.seconds(bare)
    read, done = (each / statistics.median(times[1:]) for times in (pool.loads, pool.computes))
    return f"{pool.made:.2f}", f"{read:,.0f}", f"{done:,.0f}", f"{loop:,.0f}", f"{done / loop:.0%}", f"{memory[0]:.2f}"


def training(bench: Bench) -> None:
    """Measure the training loop beside a bare one on the same arrays."""
    header = ("model", "arithmetic", "batch", "rows/s", "bare loop rows/s", "of the bare loop", "with dynamics", "peak GiB")
    count, steps = (128, 2) if bench.quick else (16384, 50)
    x, y = synthetic(count)
    data = TrainingArrays(x, y, np.ones(count, np.float32), np.arange(count, dtype=np.int64))
    cases = [("mlp", None, 128), ("mlp", None, 1024), ("cnn", None, 128), ("resnet18", None, 256), ("resnet18", "bfloat16", 256)]

    def rows() -> Iterator[tuple[object, ...]]:
        for name, dtype, batch in cases[:1] if bench.quick else cases:
            yield (name, dtype or "float32", batch, *_training(bench, data, name, numerics_of(bench, dtype), batch, steps))

    bench.table(f"The training loop, {steps} steps, one-cycle AdamW", header, rows())


def _training(
    bench: Bench, data: TrainingArrays, name: str, numerics: Numerics, batch: int, steps: int
) -> tuple[object, ...]:
    settings = Settings(steps=steps, seed=1, batch_size=batch, lr=1e-3, weight_decay=0.01, numerics=numerics)
    pipeline, memory = Pipeline(Recipe(), numerics), list[float]()

    def ours(record: bool = False) -> None:
        recorder = DynamicsRecorder(len(data.y), bench.device) if record else None
        train_model(build_model(Use(use=name), SHAPE, CLASSES, 0), data, settings, pipeline, recorder=recorder)

    def bare() -> None:
        model = build_model(Use(use=name), SHAPE, CLASSES, 0).to(bench.device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=steps)
        order = np.random.default_rng(0).permutation(len(data.y))
        for step in range(steps):
            at = (step * batch) % (len(order) - batch + 1)
            rows = order[at : at + batch]
            inputs = torch.from_numpy(data.x[rows]).to(bench.device, non_blocking=True).float().div_(255)
            labels = torch.from_numpy(data.y[rows]).to(bench.device, non_blocking=True)
            with autocast(numerics):
                logits = model(inputs)
            loss = torch.nn.functional.cross_entropy(logits.float(), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if step + 1 < steps:
                schedule.step()
        float(loss.detach())

    with bench.peak(memory):
        ours()
    taken = [bench.seconds(work) for work in (ours, bare, lambda: ours(True))]
    rates = [steps * batch / seconds for seconds in taken]
    return f"{rates[0]:,.0f}", f"{rates[1]:,.0f}", f"{rates[0] / rates[1]:.0%}", f"{taken[2] / taken[0]:.3f}", f"{memory[0]:.2f}"


def run_stages(plan: Plan, store: Store) -> list[tuple[Any, Seal]]:
    """Run every stage of a plan in this process and return (training, seal) of each."""
    run, pool = plan.config, SerialPool()
    index = shard_stage(run.data, store, pool, plan.source_code)
    assert run.proxy is not None and run.score is not None
    proxies = proxy_stage(run.proxy, ProxyInputs(run.data, index, plan.checkpoints, plan.code, run.seed), store, pool)
    scores = score_stage(run.score, ScoreInputs(run.data, index, run.proxy, proxies, plan.code, run.seed), store, pool)
    table = merge_stage(
        MergeInputs(run.data, index, scores, None, None, run.scores_id_column, run.select.resources), store, pool
    )
    chosen = dict(plan.selections.values())
    seals = selection_stage(list(chosen.items()), SelectInputs(run.data, index, table), store, pool)
    asked = [(plan.subset(key), seal) for key, seal in zip(chosen, seals)]
    made = subset_stage(asked, SubsetInputs(run.data, index), store, pool)
    selections, subsets = dict(zip(chosen, seals)), dict(zip(chosen, made))
    units = []
    for item in plan.trainings:
        steps = run.train.steps_for(round(item.keep * int(index.meta["num_train"])))
        source = item.selection or ""
        units.append((item.key, TrainUnit(
            item.arm, item.keep, item.replicate, subsets.get(source), selections.get(source), steps, item.seed
        )))  # fmt: skip
    return list(zip(plan.trainings, train_stage(run.train, TrainInputs(run.data, index, plan.code, units), store, pool)))


def whole(bench: Bench) -> None:
    """Run the quickstart, and MNIST where its folder is given, on the device and on the CPU; compare accuracies."""
    import yaml

    def rows() -> Iterator[tuple[object, ...]]:
        for name in ("quickstart", "mnist") if bench.data and not bench.quick else ("quickstart",):
            found: dict[str, dict[tuple[str, float], list[float]]] = {}
            seconds: dict[str, float] = {}
            for device in dict.fromkeys((bench.device.type, "cpu")):
                body = yaml.safe_load((ROOT / f"configs/{name}.yaml").read_text())
                for part in ("proxy", "score", "train"):
                    body[part]["numerics"] = {"device": device}
                if name == "mnist":
                    body["data"]["train"] = bench.data
                    body["select"] = {"keep": [0.01, 0.1], "arms": body["select"]["arms"][1:2]}
                if bench.quick:
                    body["proxy"] |= {"epochs": 2, "seeds": 1}
                    body["train"] |= {"replicates": 2, "steps": 50}
                with tempfile.TemporaryDirectory() as folder:
                    start = time.perf_counter()
                    results = run_stages(make_plan(parse_config(body, name)), Store(folder))
                    seconds[device] = time.perf_counter() - start
                for training, seal in results:
                    place = found.setdefault(device, {}).setdefault((training.arm, training.keep), [])
                    place.append(float(seal.meta["accuracy"]))
            for place, values in found[bench.device.type].items():
                other = found["cpu"][place]
                spread = statistics.stdev([a - b for a, b in zip(values, other)]) / len(values) ** 0.5
                yield (
                    name, place[0], f"{place[1]:g}", f"{statistics.mean(values):.2f}", f"{statistics.mean(other):.2f}",
                    f"{statistics.mean(values) - statistics.mean(other):+.2f} ± {spread:.2f}",
                    f"{seconds[bench.device.type]:.1f}", f"{seconds['cpu']:.1f}",
                )  # fmt: skip

    header = ("run", "arm", "keep", "accuracy here %", "on the CPU %", "difference ± standard error", "seconds here", "CPU")
    bench.table("Whole runs, serial, against the CPU", header, rows())
