"""Every GPU path on one GPU, with the two limits of the card: `python -m benchmarks.gpu [--quick] [--out FILE]`."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import gpu_promises, gpu_ranks, gpu_scoring, gpu_stages
from benchmarks.gpu_timing import Bench, describe, measure_limits

SECTIONS: dict[str, Callable[[Bench], None]] = {
    "scores-again": gpu_promises.scores,
    "trainings-again": gpu_promises.trainings,
    "ranks": gpu_ranks.ranks,
    "whole": gpu_stages.whole,
    "forward": gpu_scoring.forward,
    "gradients": gpu_scoring.gradients,
    "copies": gpu_scoring.copies,
    "scoring": gpu_stages.scoring,
    "training": gpu_stages.training,
}
"""In this order: what must hold comes before what should be fast."""


def main(arguments: list[str] | None = None) -> int:
    """Print the tables; return 1 where a section failed or bytes differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that everything runs, on a CPU too")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda where there is one")
    parser.add_argument("--only", nargs="*", choices=list(SECTIONS), default=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--data", help="folder of MNIST's four IDX files, for a whole run on it")
    parser.add_argument("--out", type=Path, help="file to write the tables to as well")
    given = parser.parse_args(arguments)
    device = given.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cpu" and not given.quick:
        parser.error("there is no GPU here; --quick runs small sizes on the CPU")
    if device == "cpu":
        torch.set_num_threads(1)
    bench = Bench(torch.device(device, 0) if device == "cuda" else torch.device("cpu"), given.quick, given.data)
    failed = []
    bench.say(f"# python -m benchmarks.gpu {' '.join(arguments if arguments is not None else sys.argv[1:])}\n")
    describe(bench)
    measure_limits(bench)
    for name in given.only:
        start = time.perf_counter()
        try:
            SECTIONS[name](bench)
        except Exception as error:
            # The other sections are worth their time on a card that is rented.
            traceback.print_exc()
            bench.say(f"\nFAILED {name}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
            failed.append(name)
        bench.say(f"\n({name}: {time.perf_counter() - start:.0f} s)")
        if given.out:
            given.out.write_text("\n".join(bench.lines) + "\n")
    return 1 if failed or any("DIFFERENT" in line for line in bench.lines) else 0


if __name__ == "__main__":
    sys.exit(main())
