"""What must be equal byte for byte on one device model: runs, processes, shards, and trainings that were stopped."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_scoring import numerics_of
from benchmarks.gpu_stages import CLASSES, SHAPE, synthetic, write_parquet
from benchmarks.gpu_timing import Bench
from cluster.record import Seal
from cluster.storage import Store
from tasks.checkpoints import decode_state, encode_state
from tasks.models.build import build_model
from tasks.pool import SerialPool
from tasks.proxy import ProxyInputs, ProxySpec, proxy_stage
from tasks.recipe import Pipeline
from tasks.score import ScoreInputs, ScoreSpec, score_stage
from tasks.shard import shard_stage
from tasks.sources.spec import DataSpec
from tasks.spec import Numerics, Recipe, Use
from tasks.tables import load_part
from tasks.training import Settings, TrainingArrays, own_state, train_model

SCORES = ("el2n", "grand", "margin", "grand_last", "forgetting", "aum")
CROP = Recipe(augment=Use(use="crop", args={"padding": 2, "flip_p": 0.5}))
WORDS = Recipe(transform=Use(use="scale", args={"by": 255.0}))
MODELS: dict[str, tuple[Use, Recipe]] = {
    "mlp, dropout": (Use(use="mlp", args={"hidden": [64], "dropout": 0.25}), Recipe()),
    "cnn": (Use(use="cnn"), CROP),
    "resnet18": (Use(use="resnet18", args={"width": 64}), CROP),
    "encoder": (Use(use="benchmarks.gpu_models:Encoder", args={"width": 64, "layers": 2, "length": 64}), WORDS),
}


def digests_of_columns(store: Store, seal: Seal) -> dict[str, str]:
    """Return the digest of every column of the score parts, rows in ascending id, whatever the shards."""
    tables = [load_part(store, part) for part in seal.parts]
    columns = {name: np.concatenate([t.column(name).to_numpy() for t in tables]) for name in tables[0].column_names}
    order = np.argsort(columns["example_id"])
    return {name: hashlib.sha256(values[order].tobytes()).hexdigest() for name, values in columns.items()}


def score_digests(path: str, rows: int, name: str, numerics: Numerics) -> dict[str, str]:
    """Train two proxies and score with them in a fresh store; return the digests of what was made."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        source = {"use": "parquet", "args": {"shape": list(SHAPE)}}
        data = DataSpec.model_validate({"source": source, "train": path, "test_fraction": 0.1, "shard_rows": rows})
        index = shard_stage(data, store, SerialPool())
        model, recipe = MODELS[name]
        proxy = ProxySpec(model=model, seeds=2, epochs=2, recipe=recipe, numerics=numerics)
        proxies = proxy_stage(proxy, ProxyInputs(data, index, (1.0,), "", 0), store, SerialPool())
        spec = ScoreSpec(scores=SCORES, forward_rows=256 if name == "resnet18" else 64, numerics=numerics)  # type: ignore[arg-type]
        scores = score_stage(spec, ScoreInputs(data, index, proxy, proxies, "", 0), store, SerialPool())
        models = hashlib.sha256()
        for seal in proxies:
            for part in seal.parts:
                if part.name.endswith(".pt"):
                    state = decode_state(store.read(part.name), part.name)["model"]
                    for key in sorted(state):
                        models.update(key.encode() + state[key].numpy().tobytes())
        parts = hashlib.sha256(b"".join(store.read(part.name) for part in scores.parts)).hexdigest()
        return {"proxies": models.hexdigest(), "parts": parts} | digests_of_columns(store, scores)


def _in_process(rank: int, path: str, rows: int, name: str, numerics: Numerics, out: str) -> None:
    del rank
    found = score_digests(path, rows, name, numerics)
    Path(out).write_text("\n".join(found.values()))


def _cases(bench: Bench) -> Iterator[tuple[str, str | None]]:
    for name in MODELS:
        for dtype in (None, "bfloat16"):
            if not bench.quick or (name, dtype) in (("mlp, dropout", None), ("encoder", None)):
                yield name, dtype


def scores(bench: Bench) -> None:
    """Check that proxies and scores are the same bytes again, in another process, and in other shards."""
    header = ("model", "arithmetic", "proxies again", "score parts again", "in another process", "other shards")

    def rows() -> Iterator[tuple[object, ...]]:
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "data.parquet")
            write_parquet(Path(path), 300 if bench.quick else 1500, 100 if bench.quick else 500)
            for name, dtype in _cases(bench):
                numerics = numerics_of(bench, dtype)
                first, again, other = (score_digests(path, count, name, numerics) for count in (1000, 1000, 130))
                elsewhere = "not asked"
                if (name, dtype) in (("resnet18", None), ("encoder", "bfloat16")) and not bench.quick:
                    out = str(Path(folder) / "digests")
                    spawn: Any = torch.multiprocessing.spawn
                    spawn(_in_process, args=(path, 1000, name, numerics, out), nprocs=1)
                    elsewhere = _same(Path(out).read_text() == "\n".join(first.values()))
                yield (
                    name, dtype or "float32", _same(first["proxies"] == again["proxies"]),
                    _same(first["parts"] == again["parts"]), elsewhere,
                    _same(first == other | {"parts": first["parts"]}, [key for key in first if first[key] != other[key]]),
                )  # fmt: skip

    bench.table(f"Proxies and the scores {', '.join(SCORES)}: the same bytes", header, rows())


def _same(equal: bool, which: Sequence[str] = ()) -> str:
    return "same" if equal else f"DIFFERENT {' '.join(name for name in which if name != 'parts')}".strip()


def trainings(bench: Bench) -> None:
    """Check that a training ends in the same bytes again, and when it goes on from a checkpoint."""
    count = 100 if bench.quick else 1000
    x, y = synthetic(count, seed=1)
    weights = np.random.default_rng(2).uniform(0.2, 2, count).astype(np.float32)
    data = TrainingArrays(x, y, weights, np.arange(count, dtype=np.int64))

    def rows() -> Iterator[tuple[object, ...]]:
        for name, dtype in _cases(bench):
            numerics = numerics_of(bench, dtype)
            model, recipe = MODELS[name]
            pipeline = Pipeline(recipe, numerics)
            settings = Settings(
                steps=3 * -(-count // 64), seed=3, batch_size=64, lr=1e-3, weight_decay=0.01, numerics=numerics,
                checkpoint_every_s=0.0,
            )  # fmt: skip

            first, kept = _train(model, data, settings, pipeline)
            again, _ = _train(model, data, settings, pipeline)
            resumed, _ = _train(model, data, settings, pipeline, decode_state(kept[0], "memory"))
            yield name, dtype or "float32", _same(_equal(first, again)), _same(_equal(first, resumed))

    bench.table("Trainings of three epochs: the same bytes", ("model", "arithmetic", "again", "resumed after an epoch"), rows())


def _train(
    model: Use, data: TrainingArrays, settings: Settings, pipeline: Pipeline, start: dict[str, Any] | None = None
) -> tuple[dict[str, torch.Tensor], list[bytes]]:
    kept: list[bytes] = []
    built = build_model(model, SHAPE, CLASSES, settings.seed)

    def keep(state: dict[str, Any]) -> None:
        kept.append(encode_state({"key": "", **state}))

    train_model(built, data, settings, pipeline, start=start, checkpoint=keep)
    return own_state(built), kept


def _equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(one[name].numpy().tobytes() == other[name].numpy().tobytes() for name in one)
