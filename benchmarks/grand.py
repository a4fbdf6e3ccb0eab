"""Exact GraNd on ResNet-18 against its peers, side by side in one run: `python -m benchmarks.grand`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import torch
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from benchmarks.contest import Row, table
from tasks.models.build import build_model
from tasks.scores import score_batch
from tasks.spec import Use

ROWS, REPEATS = 32, 5
OURS, ONE_PASS = "score_batch grand", "one forward + backward"


def measure(repeats: int) -> list[Row]:
    """Return the lines of the table."""
    torch.set_num_threads(2)
    model = build_model(Use(use="resnet18"), (3, 32, 32), 10, seed=0).eval()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, 3, 32, 32, generator=generator)
    y = torch.randint(0, 10, (ROWS,), generator=generator)
    parameters = dict(model.named_parameters())
    buffers = dict(model.named_buffers())

    def ours() -> torch.Tensor:
        return score_batch(model, x, y, ["grand"])["grand"]

    def one_pass() -> torch.Tensor:
        model.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        return torch.empty(0)

    def loop() -> torch.Tensor:
        out = []
        for row in range(ROWS):
            model.zero_grad()
            functional.cross_entropy(model(x[row : row + 1]), y[row : row + 1]).backward()
            out.append(sum(p.grad.double().pow(2).sum() for p in model.parameters() if p.grad is not None) ** 0.5)
        return torch.stack([torch.as_tensor(value) for value in out])

    def loss(params: dict[str, torch.Tensor], row: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        logits = functional_call(model, (params, buffers), (row[None],))
        return functional.cross_entropy(logits, target[None])

    def per_example() -> torch.Tensor:
        grads = vmap(grad(loss), in_dims=(None, 0, 0), chunk_size=8)(parameters, x, y)
        return sum(g.double().flatten(1).pow(2).sum(1) for g in grads.values()).sqrt()

    ways: list[tuple[str, Callable[[], torch.Tensor]]] = [
        (OURS, ours), (ONE_PASS, one_pass), ("per-example loop", loop),
        ("torch.func vmap(grad)", per_example),
    ]  # fmt: skip
    truth = loop()
    seconds, error = {}, 0.0
    for name, way in ways:
        result = way()
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            way()
            times.append(time.perf_counter() - start)
        seconds[name] = sorted(times)[repeats // 2]
        if name == OURS:
            error = float(((result.double() - truth).abs() / truth).max())
        print(f"  {name}: {seconds[name]:.3f} s", file=sys.stderr, flush=True)
    mine, out = seconds[OURS], []
    for name, bar, faster in (("torch.func vmap(grad)", 15.0, True), ("per-example loop", 5.0, True), (ONE_PASS, 3.0, False)):
        ratio = seconds[name] / mine if faster else mine / seconds[name]
        met = (ratio >= bar if faster else ratio <= bar) and error <= 1e-4
        said = f"{'>=' if faster else '<='} {bar:g}x{' faster' if faster else ' its time'}"
        work = f"exact GraNd over all parameters, ResNet-18, batch {ROWS}"
        out.append(Row(work, name, said, f"{mine:.2f} s", f"{seconds[name]:.2f} s", f"{ratio:.2f}x", met,
                       f"largest relative error {error:.1e}"))  # fmt: skip
    return out


def main() -> None:
    """Print the table."""
    print(table(measure(REPEATS)))


if __name__ == "__main__":
    main()
