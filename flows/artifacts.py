"""What a run shows in Prefect besides its states: progress bars, tables, notes. Losing them never costs the run."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import UUID

from flows.api_link import LINK
from flows.stage_task import in_flow_run

# An update is an API call: some 30 ms for the driver, and a row for the server. Tenths bound them whatever the shards.
STEPS = 10


def artifact_key(text: str) -> str:
    """Return `text` as Prefect wants its keys: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "artifact"


def _wanted() -> bool:
    return LINK.lost is None and not LINK.artifacts_off and in_flow_run()


def _publish(call: Callable[[], Any]) -> Any:
    """Return `call()`, or None where Prefect fails; the run's one warning tells of that."""
    from prefect.settings import temporary_settings

    try:
        # One that fails is not worth waiting for: no retries.
        with temporary_settings({"PREFECT_CLIENT_MAX_RETRIES": 0}):
            return call()
    except Exception as error:
        # Not a crash, so whatever Prefect raises, but also not silent: the link warns in both cases.
        if LINK.alive():
            LINK.artifacts_off = True
            LINK.warn_once(f"Prefect refuses artifacts ({type(error).__name__}: {error}); the run goes on without them")
        return None


def publish_table(key: str, rows: Sequence[Mapping[str, Any]], description: str) -> bool:
    """Publish a table artifact on the current flow or task run; return whether it was."""
    if not _wanted():
        return False
    from prefect.artifacts import create_table_artifact

    table = [dict(row) for row in rows]
    made = _publish(lambda: create_table_artifact(table=table, key=artifact_key(key), description=description))
    return made is not None


def publish_markdown(key: str, text: str, description: str) -> bool:
    """Publish a markdown artifact on the current flow or task run; return whether it was."""
    if not _wanted():
        return False
    from prefect.artifacts import create_markdown_artifact

    made = _publish(
        lambda: create_markdown_artifact(markdown=text, key=artifact_key(key), description=description)
    )
    return made is not None


class ProgressArtifacts:
    """Be the progress callback of a pool: one progress artifact a stage, updated when another tenth of it is done."""

    def __init__(self) -> None:
        self.calls = 0
        self._made: dict[str, UUID] = {}
        self._told: dict[str, int] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show that `done` of `total` items of the stage are done."""
        step = STEPS * done // max(total, 1)
        if not _wanted() or self._told.get(stage) == step:
            return
        self._told[stage] = step
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        percent, text = 100.0 * done / max(total, 1), f"{stage}: {done} of {total}"
        self.calls += 1
        if stage in self._made:
            made = self._made[stage]
            _publish(lambda: update_progress_artifact(artifact_id=made, progress=percent, description=text))
        else:
            made = _publish(
                lambda: create_progress_artifact(progress=percent, key=artifact_key(stage), description=text)
            )
            if made is not None:
                self._made[stage] = made
