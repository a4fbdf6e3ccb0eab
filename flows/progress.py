"""What a person sees while a run goes on: bars on standard error, one line for each stage that ended."""

from __future__ import annotations

import contextlib
import sys
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from cluster.control_characters import show_controls
from flows.artifacts import ProgressArtifacts
from flows.output import DROPPED


class _Console(Console):
    """Be rich's console, but for a reader that is gone, at which rich ends the process."""

    def on_broken_pipe(self) -> None:
        """Go on: what nobody reads is dropped."""


CONSOLE = _Console(stderr=True, highlight=False, soft_wrap=True)


def print_line(text: str) -> None:
    """Print one line to standard error, above the bars; control characters are shown as escapes.

    A line that cannot be written is dropped: the command line's own stream does so too, that of a scheduled run does not.
    """
    with contextlib.suppress(*DROPPED):
        CONSOLE.print(show_controls(text), markup=False)


class Progress:
    """Show a bar a stage where standard error is a terminal; elsewhere only the lines."""

    def __init__(self) -> None:
        self.bars: Any = None
        self.tasks: dict[str, Any] = {}
        self.artifacts = ProgressArtifacts()

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            columns = (TextColumn("{task.description:<8}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self.bars = Bars(*columns, console=CONSOLE, transient=True)
            self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bars is not None:
            self.bars.stop()
            self.bars = None

    def update(self, stage: str, done: int, total: int) -> None:
        """Show that `done` of `total` items of a stage are done, here and (throttled) in Prefect."""
        self.artifacts(stage, done, total)
        if self.bars is None:
            return
        if stage not in self.tasks:
            self.tasks[stage] = self.bars.add_task(stage, total=total)
        self.bars.update(self.tasks[stage], completed=done, total=total)

    def finish(self, stage: str) -> None:
        """Take the bar of a stage away."""
        if self.bars is not None and stage in self.tasks:
            self.bars.remove_task(self.tasks.pop(stage))
