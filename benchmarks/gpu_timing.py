"""What the GPU benchmark measures with: medians of synchronised runs, the two limits of a card, counts of work."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

REPEATS = 5
LEAST_SECONDS = 0.02
"""Work shorter than this is repeated inside one measurement."""


@dataclass
class Bench:
    """Hold the device, how small everything is, and what was printed."""

    device: torch.device
    quick: bool
    data: str | None = None
    lines: list[str] = field(default_factory=list)
    limits: dict[str, float] = field(default_factory=dict)

    @property
    def cuda(self) -> bool:
        """Return whether the device is a GPU."""
        return self.device.type == "cuda"

    def say(self, line: str = "") -> None:
        """Print a line and remember it."""
        print(line, flush=True)
        self.lines.append(line)

    def table(self, title: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Print a Markdown table, row by row as they are measured."""
        self.say(f"\n## {title}\n")
        self.say("| " + " | ".join(header) + " |")
        self.say("|" + " --- |" * len(header))
        for row in rows:
            self.say("| " + " | ".join(str(cell) for cell in row) + " |")

    def sync(self) -> None:
        """Wait for the device."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def once(self, work: Callable[[], object]) -> float:
        """Return the seconds of one synchronised run."""
        self.sync()
        start = time.perf_counter()
        work()
        self.sync()
        return time.perf_counter() - start

    def seconds(self, work: Callable[[], object], repeats: int = REPEATS) -> float:
        """Return the median seconds of a run, of `repeats` after two to warm up."""
        work()
        count = 1 if self.quick else min(200, math.ceil(LEAST_SECONDS / max(self.once(work), 1e-6)))

        def several() -> None:
            for _ in range(count):
                work()

        return sorted(self.once(several) for _ in range(repeats))[repeats // 2] / count

    @contextmanager
    def peak(self, into: list[float]) -> Iterator[None]:
        """Append the peak of the device's allocated memory in the block, in GiB; nan on the CPU."""
        if self.cuda:
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
        yield
        into.append(torch.cuda.max_memory_allocated(self.device) / 2**30 if self.cuda else math.nan)


def describe(bench: Bench) -> None:
    """Print what the numbers were measured on."""
    import platform

    name = torch.cuda.get_device_name(bench.device) if bench.cuda else "CPU (small sizes: this only shows that it runs)"
    bench.say(f"- device: {name}; torch {torch.__version__}, Python {platform.python_version()}")
    if bench.cuda:
        memory = torch.cuda.get_device_properties(bench.device).total_memory / 2**30
        bench.say(f"- {memory:.0f} GiB; CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")
    bench.say(f"- date: {time.strftime('%Y-%m-%d', time.gmtime())}; medians of {REPEATS} after a warm-up")


def measure_limits(bench: Bench) -> None:
    """Measure what the device can do at most: rates of large matrix products, bytes of large copies."""
    side, size = (512, 2**24) if bench.quick or not bench.cuda else (8192, 2**30)
    rows = []
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        a, b = (torch.randn(side, side, device=bench.device).to(dtype) for _ in range(2))
        rate = 2 * side**3 / bench.seconds(lambda a=a, b=b: a @ b)
        bench.limits[name] = rate
        rows.append((f"{name} matrix product, {side} cubed", f"{rate / 1e12:.2f} TFLOP/s"))
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    bench.limits["bytes"] = 2 * size / bench.seconds(lambda: target.copy_(source))
    rows.append(("copy on the device, read + written", f"{bench.limits['bytes'] / 1e9:.0f} GB/s"))
    if bench.cuda:
        pageable = torch.empty(2**28, dtype=torch.uint8).fill_(1)
        pinned = pageable.pin_memory()
        for name, host in (("pageable", pageable), ("pinned", pinned)):
            rate = len(host) / bench.seconds(lambda host=host: target[: len(host)].copy_(host, non_blocking=True))
            bench.limits[name] = rate
            rows.append((f"host to device, {name}", f"{rate / 1e9:.1f} GB/s"))
    bench.table("The limits of this device, measured (TF32 off)", ("limit", "rate"), rows)


class _Bytes(TorchDispatchMode):
    """Add up the bytes that each operation reads and writes; views are free."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        reads = [item for item in torch.utils._pytree.tree_leaves((args, kwargs)) if isinstance(item, torch.Tensor)]
        writes = [item for item in torch.utils._pytree.tree_leaves(out) if isinstance(item, torch.Tensor)]
        storages = {item.untyped_storage().data_ptr() for item in reads}
        inplace = func._schema.name.endswith("_")
        view = bool(writes) and not inplace and all(item.untyped_storage().data_ptr() in storages for item in writes)
        if not view:
            self.total += sum(item.numel() * item.element_size() for item in [*reads, *writes])
        return out


def count_work(work: Callable[[], object]) -> tuple[float, float]:
    """Return the floating-point operations of a run, and the bytes its operations read and write one by one."""
    work()
    moved = _Bytes()
    with FlopCounterMode(display=False) as flops, moved:
        work()
    return float(flops.get_total_flops()), float(moved.total)


@dataclass(frozen=True)
class Batch:
    """Hold the rows and seconds of the fastest pass, and what ended the doubling: "memory", "cap" or "gain"."""

    rows: int
    seconds: float
    ended: str


def find_batch(bench: Bench, work: Callable[[int], object], start: int, most: int) -> Batch:
    """Return the fastest pass, doubling the rows until memory, the cap of `most`, or until it gains less than 3 %.

    Raises ValueError where `start` is above `most`, OutOfMemoryError where not even `start` rows fit.
    """
    if start > most:
        raise ValueError(f"a pass begins at {start} rows, and there are {most}")
    best = (0, math.inf)
    rows = start
    while rows <= most:
        try:
            seconds = bench.seconds(lambda rows=rows: work(rows), repeats=3)
        except torch.OutOfMemoryError:
            if rows == start:
                raise
            torch.cuda.empty_cache()
            return Batch(*best, "memory")
        gained = best[0] == 0 or rows / seconds > 1.03 * best[0] / best[1]
        if not gained:
            return Batch(*best, "gain")
        best = (rows, seconds)
        rows *= 2
    return Batch(*best, "cap")
