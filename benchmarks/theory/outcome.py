"""What every command of this folder leaves: a table on the terminal, and Markdown and SVG in a folder of results."""

from __future__ import annotations

import argparse
import datetime
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

RESULTS = Path(__file__).parent / "results"

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Table:
    """Hold a titled table of text cells; `note` says how to read it."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""

    def markdown(self) -> str:
        """Return the table in Markdown."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        return f"## {self.title}\n\n{self.note}\n\n{body}\n" if self.note else f"## {self.title}\n\n{body}\n"

    def plain(self) -> str:
        """Return the table with aligned columns, for a terminal."""
        widths = [max(len(row[i]) for row in [self.columns, *self.rows]) for i in range(len(self.columns))]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in [self.columns, *self.rows]]
        return "\n".join([self.title, *lines, ""])


@dataclass
class Outcome:
    """Hold what one command found: tables, and one figure."""

    name: str
    title: str
    tables: list[Table]
    figure: str
    alt: str
    started: float = field(default_factory=time.monotonic)

    def write(self, out: Path, command: str) -> None:
        """Print the tables, and write NAME.md and NAME.svg into `out`, with the command, the date and the seconds."""
        seconds = time.monotonic() - self.started
        date = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
        out.mkdir(parents=True, exist_ok=True)
        (out / f"{self.name}.svg").write_text(self.figure, encoding="utf-8")
        head = f"# {self.title}\n\n`{command}`, {date}, {seconds:.0f} s on a shared two-core machine.\n\n"
        body = "\n".join(table.markdown() for table in self.tables)
        text = f"{head}![{self.alt}]({self.name}.svg)\n\n{body}"
        (out / f"{self.name}.md").write_text(text, encoding="utf-8")
        for table in self.tables:
            print(table.plain())
        print(f"{out / self.name}.md and .svg, {seconds:.0f} s")


def parser(doc: str | None, replicates: int) -> argparse.ArgumentParser:
    """Return the options that all commands take."""
    made = argparse.ArgumentParser(description=doc)
    made.add_argument("--replicates", type=int, default=replicates, help=f"default {replicates}")
    made.add_argument("--out", type=Path, default=RESULTS, help="folder of results; default benchmarks/theory/results")
    return made


def interval(values: F64, level: float = 0.95) -> tuple[float, float]:
    """Return the mean of values (R,) and the half-width of its t interval."""
    from scipy.stats import t

    spread = float(values.std(ddof=1)) / np.sqrt(len(values))
    return float(values.mean()), float(t.ppf(0.5 + level / 2, len(values) - 1)) * spread


def slope(sizes: F64, values: F64, level: float = 0.95) -> tuple[float, float]:
    """Return the least-squares slope of log values (L, R) on log sizes (L,), and the half-width of its t interval.

    Every value is an observation of its own: replicates of different sizes must be independent.
    """
    from scipy.stats import t

    x = np.repeat(np.log(sizes), values.shape[1])
    y = np.log(values).ravel()
    x = x - x.mean()
    found = float(x @ y / (x @ x))
    residual = y - y.mean() - found * x
    error = np.sqrt(float(residual @ residual) / (len(y) - 2) / float(x @ x))
    return found, float(t.ppf(0.5 + level / 2, len(y) - 2) * error)


def said(value: float, half: float, digits: int) -> str:
    """Return an estimate with its margin."""
    return f"{value:.{digits}f} ± {half:.{digits}f}"
