"""Exact GraNd against its peers, side by side in one run: `python -m benchmarks.grand [resnet18] [encoder]`.

Beside the bars stands the least that any exact way does: a forward pass and a backward pass to the first layer's output that
makes no gradient of a parameter. A peer's time over the floor's is the greatest figure that is to be had against it. Of the
encoder (width 256) it is below both bars: a loop over its examples multiplies three forward passes' worth, the floor two, and
matrices of 128 rows are nearly as fast, row for row, as those of 4,096. On one thread, in seconds of CPU: loop 2.17, floor 1.27,
GraNd 1.83. Most of the rest are the norms, from products of 128 x 128 (Gram matrices) where these are cheaper than the gradients.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch.func import functional_call, grad, vmap
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import get_total_norm

from benchmarks.contest import Row, peaks_of, table
from benchmarks.gpu_models import WORDS, Encoder
from benchmarks.gpu_timing import Bench, count_work
from tasks.models.build import build_model
from tasks.scores import score_batch
from tasks.spec import Use

ROWS, REPEATS, CLASSES, LENGTH, THREADS = 32, 5, 10, 128, 2
OURS, ONE_PASS, FLOOR = "score_batch grand", "one forward + backward", "no gradient of a parameter"
LOOP, PER_EXAMPLE = "per-example loop", "torch.func vmap(grad)"


@dataclass(frozen=True)
class Case:
    """Hold a model, a batch of it, and the bars: times faster than vmap(grad) and than the loop."""

    short: str
    name: str
    model: torch.nn.Module
    first: torch.nn.Module
    x: torch.Tensor
    bars: tuple[float, float]


def case_of(name: str) -> Case:
    """Return a case by its name, resnet18 or encoder."""
    generator = torch.Generator().manual_seed(0)
    if name == "resnet18":
        model = build_model(Use(use="resnet18"), (3, 32, 32), CLASSES, seed=0).eval()
        first = next(module for module in model.modules() if isinstance(module, torch.nn.Conv2d))
        return Case(name, "ResNet-18", model, first, torch.randn(ROWS, 3, 32, 32, generator=generator), (15.0, 5.0))
    args = {"width": 256, "layers": 6, "length": LENGTH}
    encoder = build_model(Use(use="benchmarks.gpu_models:Encoder", args=args), (LENGTH,), CLASSES, seed=0).eval()
    assert isinstance(encoder, Encoder)
    words = torch.randint(0, WORDS, (ROWS, LENGTH), generator=generator)
    return Case(name, f"encoder, 6 layers, {LENGTH} words", encoder, encoder.words, words, (10.0, 4.0))


def ways_of(case: Case) -> dict[str, Callable[[], torch.Tensor]]:
    """Return every way to the norms of a case's examples, and the passes that say how far they are from the least."""
    model, x = case.model, case.x
    y = torch.randint(0, CLASSES, (ROWS,), generator=torch.Generator().manual_seed(1))
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())

    def ours() -> torch.Tensor:
        return score_batch(model, x, y, ["grand"])["grand"]

    def one_pass() -> torch.Tensor:
        model.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        return torch.empty(0)

    def floor() -> torch.Tensor:
        caught: list[torch.Tensor] = []
        handle = case.first.register_forward_hook(lambda module, inputs, output: caught.append(output.requires_grad_()))
        try:
            for parameter in parameters.values():
                parameter.requires_grad_(False)
            loss = functional.cross_entropy(model(x), y)
            return torch.autograd.grad(loss, caught)[0]
        finally:
            handle.remove()
            for parameter in parameters.values():
                parameter.requires_grad_(True)

    def loop() -> torch.Tensor:
        out = []
        for row in range(ROWS):
            one = functional.cross_entropy(model(x[row : row + 1]), y[row : row + 1])
            out.append(get_total_norm(torch.autograd.grad(one, list(parameters.values()))))
        return torch.stack(out)

    def squared_norm(params: dict[str, torch.Tensor], row: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        def loss(params: dict[str, torch.Tensor]) -> torch.Tensor:
            return functional.cross_entropy(functional_call(model, (params, buffers), (row[None],)), target[None])

        # Inside the mapped function: no gradient outlives its chunk. Kept, they took 6 GiB and 2.3 times the processor.
        return torch.stack([one.square().sum() for one in grad(loss)(params).values()]).sum()

    def per_example() -> torch.Tensor:
        # It has no rule for the fused attention of a CPU, and takes that example by example: the plain one is no slower.
        with sdpa_kernel(SDPBackend.MATH):
            return vmap(squared_norm, in_dims=(None, 0, 0), chunk_size=8)(parameters, x, y).sqrt()

    return {OURS: ours, FLOOR: floor, ONE_PASS: one_pass, LOOP: loop, PER_EXAMPLE: per_example}


def truth_of(case: Case) -> torch.Tensor:
    """Return the norms in float64, an example at a time."""
    x = case.x.double() if case.x.is_floating_point() else case.x
    return ways_of(replace(case, model=copy.deepcopy(case.model).double(), x=x))[LOOP]()


def rates() -> tuple[float, float]:
    """Return this machine's operations a second of a large float32 matrix product, and bytes a second of a large copy."""
    bench = Bench(torch.device("cpu"), quick=False)
    a, b = (torch.randn(2048, 2048) for _ in range(2))
    source = torch.randint(0, 255, (2**28,), dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2 * 2048**3 / bench.seconds(lambda: a @ b), 2 * len(source) / bench.seconds(lambda: target.copy_(source))


def measure_case(case: Case, repeats: int) -> list[Row]:
    """Return the lines of one model."""
    ways = ways_of(case)
    times: dict[str, list[float]] = {name: [] for name in ways}
    results: dict[str, torch.Tensor] = {}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            results[name] = way()
            if turn:
                times[name].append(time.perf_counter() - start)
    seconds = {name: statistics.median(found) for name, found in times.items()}
    print(f"  {case.name}: {', '.join(f'{name} {took:.3f} s' for name, took in seconds.items())}", file=sys.stderr, flush=True)
    peaks = peaks_of("benchmarks.grand", ways, case.short)
    truth = truth_of(case)
    errors = {name: float(((results[name].double() - truth).abs() / truth).max()) for name in (OURS, LOOP, PER_EXAMPLE)}
    if max(errors.values()) > 1e-4:
        raise ValueError(f"{case.name}: the ways to GraNd differ from float64 by {errors}; at most 1e-4 is rounding")
    error = errors[OURS]
    with_memory = {name: f"{seconds[name]:.2f} s, {peaks[name]:.0f} MiB" for name in ways}
    # With gradients on: an encoder's fused pass without them hides its products from the count.
    forward, moved = count_work(lambda: case.model(case.x))
    per_second, copied = rates()
    # The way back to the first layer multiplies as much as the way there.
    limit = (
        f"{2 * forward / 1e9:.0f} GFLOP at {per_second / 1e9:.0f} a second and {2 * moved / 1e9:.1f} GB at {copied / 1e9:.0f}: "
        f"{2 * forward / per_second:.2f} and {2 * moved / copied:.2f} s"
    )
    mine, out = seconds[OURS], []
    for name, bar, faster in ((PER_EXAMPLE, case.bars[0], True), (LOOP, case.bars[1], True), (ONE_PASS, 3.0, False)):
        ratio = seconds[name] / mine if faster else mine / seconds[name]
        met = ratio >= bar if faster else ratio <= bar
        said = f"{'>=' if faster else '<='} {bar:g}x{' faster' if faster else ' its time'}"
        work = f"exact GraNd over all parameters, {case.name}, batch {ROWS}"
        note = f"largest relative error {error:.1e}"
        if faster:
            most = seconds[name] / seconds[FLOOR]
            note += f"; with no gradient of a parameter {seconds[FLOOR]:.2f} s, so {most:.1f}x at most ({limit})"
        out.append(Row(work, name, said, with_memory[OURS], with_memory[name], f"{ratio:.2f}x", met, note))
    return out


def measure(repeats: int, names: tuple[str, ...] = ("resnet18", "encoder")) -> list[Row]:
    """Return the lines of the table."""
    torch.set_num_threads(THREADS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [row for name in names for row in measure_case(case_of(name), repeats)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=["resnet18", "encoder", []], help="both by default")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--way", choices=(OURS, FLOOR, ONE_PASS, LOOP, PER_EXAMPLE), help="do one way once and print nothing")
    arguments = parser.parse_args()
    if arguments.way:
        torch.set_num_threads(THREADS)
        for name in arguments.names:
            ways_of(case_of(name))[arguments.way]()
        return
    print(table(measure(arguments.repeats, tuple(arguments.names) or ("resnet18", "encoder"))))


if __name__ == "__main__":
    main()
