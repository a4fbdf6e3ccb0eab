"""What comes back from the workers of a Ray pool: results, errors of the work, and deaths; and which of them are final."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray import exceptions as ray_errors

from cluster.errors import ItemsError, StageError
from cluster.host import Outcome

DEATHS = (
    ray_errors.RayActorError,
    ray_errors.ObjectLostError,
    ray_errors.NodeDiedError,
    ray_errors.WorkerCrashedError,
    ray_errors.OutOfMemoryError,
    ray_errors.LocalRayletDiedError,
)


def outcomes(done: Sequence[Any]) -> list[Outcome | Exception]:
    """Return what each finished call returned, or the error that says its worker, node or result is lost."""
    try:
        return list(ray.get(list(done)))
    except DEATHS as error:
        if len(done) == 1:
            return [error]
    except ray_errors.RayTaskError as error:
        # Not the work itself, whose errors are results: Ray could not carry the item or the result.
        if len(done) == 1:
            return [(False, error.cause if isinstance(error.cause, Exception) else error)]
    return [outcome for ref in done for outcome in outcomes([ref])]


def shown(item: Any) -> str:
    """Return an item or an error as a message names it: 200 characters at most."""
    text = str(item)
    return text if len(text) <= 200 else text[:197] + "..."


def _final(*errors: Exception) -> type[StageError]:
    """Return ItemsError, which no one retries; StageError where nothing but input and output failed, which may pass."""
    return StageError if all(isinstance(error, OSError) for error in errors) else ItemsError


def unmade(label: str, error: Exception) -> StageError:
    """Return what to raise where a worker cannot be made."""
    return _final(error)(
        f"{label}: the worker cannot be made ({type(error).__name__}: {error}). Mend the cause and run again"
    )


def failed(label: str, items: Sequence[Any], failures: Mapping[int, Exception], deaths: Sequence[int]) -> StageError:
    """Return what to raise once all other items are done: `failures` by the index of their item, the first five told."""
    causes = "; ".join(
        f"{shown(items[index])}: "
        + (f"its worker died {deaths[index]} times" if isinstance(error, DEATHS) else f"{type(error).__name__}: {error}")
        for index, error in sorted(failures.items())[:5]
    )
    return _final(*failures.values())(
        f"{label}: {len(failures)} of {len(items)} items failed ({causes}); what the others committed stays. "
        "Mend the cause and run again"
    )
