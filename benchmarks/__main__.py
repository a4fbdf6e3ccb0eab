"""Every comparison with a bar: `python -m benchmarks` (or `make bench`) prints one table and writes benchmarks/RESULTS.md.

Each figure is a ratio of medians measured side by side in one run, after a warm-up. A part is written once it is measured, with
its date, commit and versions; the parts not asked for stay as they were. --quick takes two repeats, and small sizes where there
are any: it shows that everything runs, says so, and writes build/RESULTS-quick.md.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from benchmarks import grand, merging, scoring, selection, startup, tiny_parts, training
from benchmarks.contest import REPEATS, Row, commit, table, versions

HEAD = """# Measured side by side

Medians of five after a warm-up, each way in turn (prefect-ray once). Memory is the greatest peak of the process
tree; ways that are timed in one process are run once more for it, each in a process of its own. A figure is the ratio that the
bar speaks of."""


def parts(quick: bool) -> dict[str, Callable[[], list[Row]]]:
    """Return the comparisons by name, in the order they are run."""
    repeats = 2 if quick else REPEATS
    rows = 2 * 10**6 if quick else 10**8
    shards = 100 if quick else tiny_parts.SHARDS

    def tiny() -> list[Row]:
        found = tiny_parts.measure(shards, repeats)
        return tiny_parts.rows_of(found, tiny_parts.task_runner(shards), shards)

    def select() -> list[Row]:
        first = selection.measure(rows, "ascending", repeats, True)
        out = selection.rows_of(first, rows, "ascending")
        for case, size in (("ascending", 3 * rows), ("eight values", rows), ("shuffled", rows)):
            found = selection.measure(size, case, 1 if quick else repeats, False)
            out += selection.rows_of(found, size, case, first["secateur"])
        return out

    return {
        "grand": lambda: grand.measure(repeats),
        "startup": lambda: startup.measure(repeats),
        "training": lambda: training.measure(repeats, {"mlp": 60, "cnn": 10} if quick else {"mlp": 600, "cnn": 100}),
        "scoring_mlp": lambda: scoring.measure(10**5 if quick else 10**6, repeats, ("mlp",)),
        "scoring_cnn": lambda: scoring.measure(10**5 if quick else 10**6, repeats, ("cnn",)),
        "tiny_parts": tiny,
        "selection": select,
        "merging": lambda: merging.rows_of(merging.measure(rows, repeats), rows),
    }


def read_sections(path: Path) -> dict[str, str]:
    """Return the text of each comparison in a file of results, by name; none where there is no file."""
    if not path.exists():
        return {}
    _, *sections = ("\n" + path.read_text()).split("\n## ")
    return {name: text.strip() for name, _, text in (section.partition("\n") for section in sections)}


def main() -> None:
    """Run the comparisons asked for, print their table, and write each with the commit and the versions once it is measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="names of comparisons, as in RESULTS.md; default all")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, help="file to write; default benchmarks/RESULTS.md, with --quick a file in build")
    arguments = parser.parse_args()
    known = parts(arguments.quick)
    unknown = set(arguments.names) - set(known)
    if unknown:
        parser.error(f"no comparison {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    usual = Path("build/RESULTS-quick.md") if arguments.quick else Path(__file__).with_name("RESULTS.md")
    path = arguments.out or usual
    path.parent.mkdir(parents=True, exist_ok=True)
    found: list[Row] = []
    failed: list[str] = []
    for name in arguments.names or known:
        print(f"{name}:", file=sys.stderr, flush=True)
        begin = time.monotonic()
        try:
            rows = known[name]()
        except Exception:
            traceback.print_exc()
            failed.append(name)
            continue
        found += rows
        command = f"python -m benchmarks {name}{' --quick' if arguments.quick else ''}"
        said = f"`{command}`, {time.strftime('%Y-%m-%d')}, commit {commit()}, {time.monotonic() - begin:.0f} s."
        sizes = "Sizes of a full run" if name in ("grand", "startup") else "Small sizes"
        small = ["", f"**{sizes}, two repeats: these figures only show that it runs.**"] if arguments.quick else []
        sections = read_sections(path) | {name: "\n".join([said, f"{versions()}.", *small, "", table(rows)])}
        path.write_text("\n\n".join([HEAD, *(f"## {one}\n\n{sections[one]}" for one in known if one in sections)]) + "\n")
    print(table(found))
    if failed:
        print(f"failed, and left as they were in {path}: {', '.join(failed)}", file=sys.stderr)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
