"""Scores on the GPU: forward passes against the two limits, exact GraNd against its peers, copies to the device."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu_models import CLASSES, Draw, subjects
from benchmarks.gpu_timing import Bench, count_work, find_batch
from tasks.arithmetic import arithmetic, autocast
from tasks.models.build import build_model
from tasks.recipe import Pipeline
from tasks.scores import score_batch
from tasks.scores.graph import trace
from tasks.scores.plan import plan_of
from tasks.spec import Numerics, Recipe, Use

Tensor = torch.Tensor
TOGETHER = ("el2n", "loss", "entropy", "margin", "least_confidence", "grand_last")


def numerics_of(bench: Bench, dtype: str | None = None) -> Numerics:
    """Return the arithmetic of the benchmark's device."""
    return Numerics(device=bench.device.type, autocast=dtype, threads=torch.get_num_threads())


def forward(bench: Bench) -> None:
    """Measure scores of one forward pass: rows a second, together and alone, and how far they are from the limits."""
    header = (
        "model", "arithmetic", "layout", "rows a pass (ended by)", "rows/s, el2n", "six scores / el2n", "bare forward / el2n",
        "rows/s at 256", "limit: operations", "limit: bytes", "of the nearer limit", "peak GiB",
    )  # fmt: skip

    def rows() -> Iterator[tuple[object, ...]]:
        for name, (model, draw) in subjects(bench).items():
            for dtype in (None, "bfloat16"):
                for layout in ("rows first", "channels_last") if "ResNet" in name else ("-",):
                    yield (name, dtype or "float32", layout, *_forward(bench, model, draw, dtype, layout))

    bench.table("Scores of one forward pass", header, rows())


def _forward(bench: Bench, model: nn.Module, draw: Draw, dtype: str | None, layout: str) -> tuple[object, ...]:
    numerics = numerics_of(bench, dtype)
    order = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    if "-" not in layout:
        model.to(memory_format=order)  # type: ignore[call-overload]
    pool, labels = draw(16 if bench.quick else 8192)
    if pool.dim() == 4:
        pool = pool.contiguous(memory_format=order)

    def score(rows: int, names: tuple[str, ...]) -> None:
        with autocast(numerics):
            score_batch(model, pool[:rows], labels[:rows], names)

    def bare(rows: int) -> None:
        with torch.inference_mode(), autocast(numerics):
            model(pool[:rows])

    memory: list[float] = []
    with arithmetic(numerics):
        found = find_batch(bench, lambda rows: score(rows, ("el2n",)), 8 if bench.quick else 128, len(pool))
        best = found.rows
        with bench.peak(memory):
            score(best, TOGETHER)
        alone = bench.seconds(lambda: score(best, ("el2n",)))
        together = bench.seconds(lambda: score(best, TOGETHER))
        plain = bench.seconds(lambda: bare(best))
        usual = min(256, len(pool))
        at_usual = usual / bench.seconds(lambda: score(usual, ("el2n",)))
        # The fused layers of the fast path are not counted.
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        operations, moved = count_work(lambda: bare(usual))
        torch.backends.mha.set_fastpath_enabled(fast)
    by_operations = usual * bench.limits[dtype or "float32"] / operations
    by_bytes = usual * bench.limits["bytes"] / moved
    share = best / alone / min(by_operations, by_bytes)
    return (
        f"{best} ({found.ended})", f"{best / alone:,.0f}", f"{together / alone:.3f}", f"{plain / alone:.3f}", f"{at_usual:,.0f}",
        f"{by_operations:,.0f}", f"{by_bytes:,.0f}", f"{share:.0%}", f"{memory[0]:.2f}",
    )  # fmt: skip


def gradients(bench: Bench) -> None:
    """Measure exact GraNd over all parameters against its three peers."""
    header = ("model", "rows", "way", "seconds", "times ours", "largest relative error", "peak GiB")

    def rows() -> Iterator[tuple[object, ...]]:
        for name, (model, draw) in subjects(bench).items():
            count = 4 if bench.quick else 128
            yield from _gradients(bench, name, model, *draw(count), peers=True)
            if not bench.quick:
                yield from _gradients(bench, name, model, *draw(512), peers=False)

    bench.table("Exact GraNd over all parameters; errors against the loop in float64", header, rows())


def _gradients(
    bench: Bench, name: str, model: nn.Module, x: Tensor, y: Tensor, *, peers: bool
) -> Iterator[tuple[object, ...]]:
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())

    def ours() -> Tensor:
        return score_batch(model, x, y, ["grand"])["grand"]

    def ours_bfloat16() -> Tensor:
        with torch.autocast(bench.device.type, torch.bfloat16):
            return ours()

    def one_pass() -> Tensor:
        model.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        return torch.empty(0)

    def loop(model: nn.Module = model, x: Tensor = x) -> Tensor:
        out = []
        for row in range(len(x)):
            model.zero_grad()
            functional.cross_entropy(model(x[row : row + 1]), y[row : row + 1]).backward()
            squares = [torch.linalg.vector_norm(p.grad, dtype=torch.float64) for p in model.parameters() if p.grad is not None]
            out.append(torch.linalg.vector_norm(torch.stack(squares)))
        return torch.stack(out)

    def squared_norm(params: dict[str, Tensor], row: Tensor, target: Tensor) -> Tensor:
        def loss(params: dict[str, Tensor]) -> Tensor:
            return functional.cross_entropy(functional_call(model, (params, buffers), (row[None],)), target[None])

        # Inside the mapped function: no gradient outlives its chunk.
        return torch.stack([one.square().sum() for one in grad(loss)(params).values()]).sum()

    def per_example() -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return vmap(squared_norm, in_dims=(None, 0, 0), chunk_size=min(len(x), 32))(parameters, x, y).sqrt()

    ways: list[tuple[str, Callable[[], Tensor]]] = [
        ("score_batch grand", ours), ("the same, bfloat16", ours_bfloat16), ("forward + backward", one_pass),
    ]  # fmt: skip
    ways += [("per-example loop", loop)] if peers else []
    ways += [("torch.func vmap(grad)", per_example)]
    torch.backends.mha.set_fastpath_enabled(False)
    with arithmetic(numerics_of(bench)):
        truth = loop(copy.deepcopy(model).double(), x.double() if x.is_floating_point() else x) if peers else ours().double()
        base = 0.0
        for way, work in ways:
            memory: list[float] = []
            with bench.peak(memory):
                result = work().detach()
            seconds = bench.seconds(work)
            base = base or seconds
            error = float(((result.double() - truth).abs() / truth).max()) if len(result) and peers else float("nan")
            yield name, len(x), way, f"{seconds:.4f}", f"{seconds / base:.2f}", f"{error:.1e}", f"{memory[0]:.2f}"
        logits = model(x[:4])
        traced = trace(logits, list(model.parameters()))
        plan = plan_of(logits, list(model.parameters()))
    torch.backends.mha.set_fastpath_enabled(True)
    model.zero_grad()
    used = len({target.parameter for target in traced.targets} | traced.tangled)
    yield name, len(x), "parameters that took the loop", len(plan.looped), f"of {used}", "-", "-"


def copies(bench: Bench) -> None:
    """Measure how stored bytes get to the device, alone and while the model works, against inputs that are there."""
    numerics = numerics_of(bench, "bfloat16")
    pipeline = Pipeline(Recipe(), numerics)
    width = 8 if bench.quick else 64
    model = build_model(Use(use="resnet18", args={"width": width}), (3, 32, 32), CLASSES, seed=0).to(bench.device).eval()
    batch, batches = (8, 2) if bench.quick else (1024, 16)
    stored = np.random.default_rng(0).integers(0, 256, (batch * batches, 3, 32, 32), dtype=np.uint8)
    parts = [stored[at : at + batch] for at in range(0, len(stored), batch)]
    labels = torch.zeros(batch, dtype=torch.int64, device=bench.device)

    def finish(x: Tensor) -> Tensor:
        return pipeline._laid_out(x.float().div_(255))

    def pinned(x: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(x)
        return tensor.pin_memory() if bench.cuda else tensor

    there = pipeline.prepare(parts[0])
    ways: dict[str, Callable[[np.ndarray], Tensor]] = {
        "already on the device": lambda x: there,
        "pageable": lambda x: finish(torch.from_numpy(x).to(bench.device)),
        "pinned, blocking": lambda x: finish(pinned(x).to(bench.device)),
        "Pipeline.prepare: pinned, not blocking": pipeline.prepare,
    }

    def rows() -> Iterator[tuple[object, ...]]:
        base = 0.0
        for name, way in ways.items():

            def alone(way: Callable[[np.ndarray], Tensor] = way) -> None:
                for part in parts:
                    way(part)

            def working(way: Callable[[np.ndarray], Tensor] = way) -> None:
                kept = []
                for part in parts:
                    with autocast(numerics):
                        kept.append(score_batch(model, way(part), labels, ["el2n"])["el2n"])
                torch.cat(kept).cpu()

            with arithmetic(numerics):
                copy, whole = bench.seconds(alone), bench.seconds(working)
            base = base or whole
            yield name, f"{1e3 * copy / batches:.3f}", f"{len(stored) / whole:,.0f}", f"{whole / base:.3f}"

    bench.table(
        f"Copies of {batch} x 3 x 32 x 32 bytes, and scoring them with ResNet-18 in bfloat16",
        ("way", "ms a batch, alone", "rows/s while scoring", "times inputs that are there"), rows(),
    )  # fmt: skip
