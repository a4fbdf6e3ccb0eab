"""The results in a terminal: one table per keep, then what they say in plain sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tasks.report.policy import sentences
from tasks.report.wording import bounds, count, kept_text, needed_text, percent, signed, with_margin

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# Columns of a terminal below which a table with one line an arm would be cut.
WIDE = 110
STYLES = {"better": "bold green", "worse": "bold red", "equivalent": "bold cyan", "undecided": "yellow"}


def print_results(results: Mapping[str, Any], console: Console) -> None:
    """Print the finding, then a table and a sentence for each keep, then time to accuracy and the notes."""
    from rich.padding import Padding
    from rich.text import Text

    for said in sentences(results) or [results["headline"]]:
        console.print(Text(said, style="bold"), soft_wrap=False)
        console.print()
    for entry in results["keeps"]:
        console.print(keep_table(results, entry["keep"], narrow=console.width < WIDE))
        console.print(Text(entry["sentence"]), soft_wrap=False)
        if entry["adjustment"]:
            console.print(Text(entry["adjustment"], style="dim"), soft_wrap=False)
        console.print()
    for entry in (results.get("time_to_accuracy") or {"keeps": []})["keeps"]:
        console.print(Text(f"Time to accuracy. {entry['sentence']}"), soft_wrap=False)
        console.print()
    for note in results["notes"]:
        style = "bold yellow" if note.startswith("Slice") else "dim"
        console.print(Padding(Text(f"- {note}", style=style), (0, 0)))


def keep_table(results: Mapping[str, Any], keep: float, *, narrow: bool = False) -> Table:
    """Return the table of one keep: random first, the full data last. `narrow` breaks cells into two lines."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    kept = next((arm["n_kept"] for arm in results["arms"] if arm["keep"] == keep and not arm["full"]), None)
    said = "" if kept is None else f": {count(kept)} of {count(results['dataset']['n_train'])} examples"
    title = Text(f"keep {percent(keep)}{said}", style="bold")
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0) if narrow else (0, 1))
    gap = "\n" if narrow else " "
    table.add_column("arm", overflow="fold", min_width=12)
    for name in ("kept", "steps", "batch", "touched"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("accuracy %", justify="right", no_wrap=True)
    table.add_column(f"difference{gap}to random", justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    compared = {row["arm"]: row for row in results["comparisons"] if row["keep"] == keep}
    for arm in arms_of(results, keep):
        row = compared.get(arm["name"])
        difference = verdict = Text("")
        if row is not None:
            difference = Text(f"{signed(row['mean_difference'])}{gap}{bounds(row['ci95'])}")
            verdict = Text(row["verdict"], style=STYLES[row["verdict"]])
            if row["verdict"] == "undecided" and needed_text(row):
                more = ">" if row["needed_capped"] else ""
                verdict.append(f"{gap}(needs {more}{row['needed_replicates']:,})", style="dim")
        table.add_row(
            Text(arm["name"]), kept_text(arm), count(arm["steps"]), count(arm["batch_size"]),
            count(arm["examples_touched"]), with_margin(arm["mean"], arm["ci95"]), difference, verdict,
        )  # fmt: skip
    return table


def arms_of(results: Mapping[str, Any], keep: float) -> list[dict[str, Any]]:
    """Return the arms of one keep in reading order: random, the pruned by mean accuracy, the full data."""
    arms = [arm for arm in results["arms"] if arm["keep"] == keep]

    def rank(arm: Mapping[str, Any]) -> tuple[int, float]:
        return (2 if arm["full"] else 0 if arm["protocol"] == "random" else 1, -arm["mean"])

    return sorted(arms, key=rank)
