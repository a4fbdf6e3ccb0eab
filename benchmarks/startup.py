"""Start-up of the command beside an empty Python, and what a finished run costs again: `python -m benchmarks.startup`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path

from benchmarks.contest import Row, in_turn, run_process, table

ROOT = Path(__file__).resolve().parents[1]
COMMAND = str(Path(sys.executable).parent / "secateur")
CONFIG = str(ROOT / "configs/quickstart.yaml")


def stages_of(store: Path) -> dict[str, int]:
    """Return when all under stages/ and each attempt's list of its stages was last written, in ns; folders, too."""
    paths = [*store.glob("stages/**/*"), *store.glob("runs/*/attempts/*.stages.json")]
    return {str(path.relative_to(store)): path.lstat().st_mtime_ns for path in paths}


def measure(repeats: int) -> list[Row]:
    """Return the lines of the table. The quickstart is run once, into a store of its own."""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "store"
        environment = {"SECATEUR_STORE": str(store)}
        first = run_process([COMMAND, "run", CONFIG], environment)
        before = stages_of(store)
        found = in_turn(
            {
                "python -c pass": partial(run_process, [sys.executable, "-c", "pass"]),
                "secateur --help": partial(run_process, [COMMAND, "--help"]),
                "secateur plan": partial(run_process, [COMMAND, "plan", CONFIG], environment),
                "secateur run, finished": partial(run_process, [COMMAND, "run", CONFIG], environment),
            },
            repeats,
        )
        idle = bool(before) and stages_of(store) == before
    empty = found["python -c pass"]
    rows = []
    for name, bar in (("secateur --help", 0.5), ("secateur plan", 0.7), ("secateur run, finished", None)):
        run = found[name]
        wanted = f"<= {bar:g} s" if bar else "no stage started"
        said, its = f"{run.seconds:.2f} s, {run.peak_mib:.0f} MiB", f"{empty.seconds:.3f} s, {empty.peak_mib:.0f} MiB"
        met = run.seconds <= bar if bar else idle
        note = "" if bar else f"the first run took {first.seconds:.0f} s"
        rows.append(Row(name, "python -c pass", wanted, said, its, f"{run.seconds / empty.seconds:.0f}x", met, note))
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    print(table(measure(parser.parse_args().repeats)))


if __name__ == "__main__":
    main()
