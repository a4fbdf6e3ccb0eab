"""How a stage asks for work to be done without knowing where: one protocol, and the serial way of meeting it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from tasks.spec import Resources

Loaded = TypeVar("Loaded")
Item_contra = TypeVar("Item_contra", contravariant=True)
Result_co = TypeVar("Result_co", covariant=True)

Progress = Callable[[str, int, int], None]
"""Called as progress(stage, items done, items in all) whenever an item is done; stage label as given to `map`."""


class Worker(Protocol[Item_contra, Loaded, Result_co]):
    """Be a long-lived worker: heavy things are loaded once, in its constructor.

    `load` of the next item may run in another thread while `compute` of this one runs; `compute` never runs twice at
    once in one worker. Both must be safe to repeat: an item is done again when its worker dies.
    """

    def load(self, item: Item_contra) -> Loaded: ...

    def compute(self, item: Item_contra, loaded: Loaded) -> Result_co: ...


class Pool(Protocol):
    """Map workers over items: unordered, bounded in flight, retried when a worker or node dies."""

    def map(
        self,
        make_worker: Callable[[], Worker[Any, Any, Any]],
        items: Sequence[Any],
        *,
        label: str,
        resources: Resources,
        done: int = 0,
    ) -> Iterator[tuple[int, Any]]:
        """Yield (index of the item, result) in order of completion.

        `make_worker` is picklable and is called once in each worker process. `done` counts items that were finished
        before (for progress only). An error of the work itself is not retried: the other items are finished first,
        then StageError names each failed item; InputError is raised at once. An item whose worker died more than
        `resources.retries` times is such a failure.
        """
        ...


class FunctionWorker:
    """Be a worker that only calls one function of the item."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def load(self, item: Any) -> None:
        """Load nothing."""

    def compute(self, item: Any, loaded: None) -> Any:
        """Return function(item)."""
        return self.function(item)


class SerialPool:
    """Do the work in this process, one item after the other. Deterministic order; the oracle of the Ray pool."""

    def __init__(self, progress: Progress | None = None) -> None:
        self.progress = progress

    def map(
        self,
        make_worker: Callable[[], Worker[Any, Any, Any]],
        items: Sequence[Any],
        *,
        label: str,
        resources: Resources,
        done: int = 0,
    ) -> Iterator[tuple[int, Any]]:
        """Yield (index, result) in the order of the items."""
        from cluster.errors import ItemsError, SecateurError

        if not items:
            return
        worker = make_worker()
        failures: list[tuple[Any, Exception]] = []
        for index, item in enumerate(items):
            try:
                result = worker.compute(item, worker.load(item))
            except SecateurError:
                raise
            except Exception as error:
                failures.append((item, error))
                continue
            if self.progress is not None:
                self.progress(label, done + index + 1 - len(failures), done + len(items))
            yield index, result
        if failures:
            causes = "; ".join(f"{item}: {type(error).__name__}: {error}" for item, error in failures[:5])
            raise ItemsError(
                f"{label}: {len(failures)} of {len(items)} items failed ({causes}); what the others committed stays. "
                "Mend the cause and run again"
            ) from failures[0][1]
