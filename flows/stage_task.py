"""Stages as Prefect task runs and the run as a flow run, both of which outlive Prefect's API."""

from __future__ import annotations

import copy
import functools
import signal
import sys
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Generic, NoReturn, ParamSpec, TypeVar

from cluster.errors import CorruptError, InputError, ItemsError, StageError, StoreRefusedError, outage_of
from flows.api_link import LINK
from flows.signals import Interrupted, current_guard

if TYPE_CHECKING:
    from prefect import Flow, Task
    from prefect.client.schemas.objects import State, TaskRun

P = ParamSpec("P")
R = TypeVar("R")

RETRY_DELAY_S = 5.0


class _Body(Generic[R]):
    """Call a function to its one result, and tell its own failures from those of the engine around it."""

    def __init__(self, function: Callable[[], R]) -> None:
        self.function = function
        self.calls = 0
        self.results: list[R] = []
        self.error: BaseException | None = None

    @property
    def finished(self) -> bool:
        return bool(self.results)

    def __call__(self) -> R:
        if not self.results:
            self.calls += 1
            self.error = None
            try:
                self.results.append(self.function())
            except BaseException as error:
                self.error = error
                raise
        return self.results[0]


def retryable(error: BaseException) -> bool:
    """Return whether doing the stage again at once can help: not where input, objects, credentials or an item are wrong, nor
    after an outage of the store that lasted for as long as anything is tried."""
    hopeless = isinstance(error, InputError | CorruptError | ItemsError | StoreRefusedError) or outage_of(error) is not None
    return isinstance(error, Exception) and not hopeless


def in_flow_run() -> bool:
    """Return whether the caller runs inside a Prefect flow run."""
    if "prefect.context" not in sys.modules:
        return False
    from prefect.context import FlowRunContext

    return FlowRunContext.get() is not None


def stage_task(
    function: Callable[P, R],
    *,
    name: str,
    run_name: str | Callable[P, str] | None = None,
    retries: int = 2,
    retry_delay_s: float = RETRY_DELAY_S,
    timeout_s: float | None = None,
    tags: Iterable[str] = (),
) -> Callable[P, R]:
    """Return `function` with the same signature, run as one Prefect task run called `name`, in the caller's thread.

    `run_name`, or what it returns for the call's arguments, names the run. The function is called again up to `retries`
    times, `retry_delay_s` apart, where `retryable`; its last exception comes out as it is. A call that runs longer than
    `timeout_s` is broken off (outside the main thread, only at its next Python instruction): StageError. Outside a flow
    run, or once the API is lost, the function is called just the same without Prefect; it runs to one result, and never
    twice at once, wherever the API is lost.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        guard = current_guard()

        def call() -> R:
            if guard is None:
                return function(*args, **kwargs)
            try:
                # Libraries put their own SIGTERM handlers in, Ray at `init`; ours must hold while a stage runs.
                with guard.installed():
                    return function(*args, **kwargs)
            except Exception:
                # Ray's compiled code may make a SystemError of the interrupt, which would pass for a failure to retry.
                guard.check()
                raise

        body = _Body(call)
        if in_flow_run() and LINK.alive():
            label = run_name(*args, **kwargs) if callable(run_name) else run_name
            task = _make_task(
                body,
                name=name,
                label=label,
                retries=retries,
                retry_delay_s=retry_delay_s,
                timeout_s=timeout_s,
                tags=tags,
            )
            try:
                return task()
            except Exception as error:
                if body.finished:
                    LINK.lose(_short(error))
                    return body.results[0]
                if _is_timeout(error) or error is body.error:
                    _raise_own(error, name, timeout_s)
                if not _prefect_failed(error):
                    raise
                LINK.lose(_short(error))
            except BaseException as error:
                raise _as_interrupt(error) from None
        return _call_plainly(body, name, retries, retry_delay_s, timeout_s)

    return run


def _make_task(
    body: _Body[R],
    *,
    name: str,
    label: str | None,
    retries: int,
    retry_delay_s: float,
    timeout_s: float | None,
    tags: Iterable[str],
) -> Task[[], R]:
    from prefect import task
    from prefect.cache_policies import NO_CACHE

    def call_body() -> R:
        return body()

    def ask(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
        return body.error is None or _is_cancelled(body.error) or retryable(body.error)

    # The arguments stay in the closure: Prefect would search them for futures, and send them to its API.
    decorate = task(
        name=name,
        task_run_name=(lambda: label) if label else None,
        retries=retries,
        retry_delay_seconds=retry_delay_s,
        retry_condition_fn=ask,
        timeout_seconds=timeout_s,
        tags=list(tags),
        cache_policy=NO_CACHE,
        persist_result=False,
        log_prints=False,
    )
    return decorate(call_body)


def _call_plainly(body: _Body[R], name: str, retries: int, retry_delay_s: float, timeout_s: float | None) -> R:
    """Call the body without Prefect's engine, with what is left of its retries."""
    while True:
        if body.error is not None:
            if body.calls > retries or not (retryable(body.error) or _is_timeout(body.error)):
                _raise_own(body.error, name, timeout_s)
            time.sleep(retry_delay_s)
        try:
            if timeout_s is None:
                return body()
            from prefect.task_engine import TaskRunTimeoutError
            from prefect.utilities.timeout import timeout

            with timeout(timeout_s, TaskRunTimeoutError):
                return body()
        except Exception as error:
            body.error = error


def _is_cancelled(error: BaseException) -> bool:
    """Return whether `error` is what Prefect raises inside a call whose time is up."""
    if "prefect.task_engine" not in sys.modules:
        return False
    from prefect._internal.concurrency.cancellation import CancelledError

    return isinstance(error, CancelledError)


def _is_timeout(error: BaseException) -> bool:
    if "prefect.task_engine" not in sys.modules:
        return False
    from prefect.task_engine import TaskRunTimeoutError

    return isinstance(error, TaskRunTimeoutError)


def _raise_own(error: BaseException, name: str, timeout_s: float | None) -> NoReturn:
    if _is_timeout(error):
        raise StageError(
            f"stage {name} ran longer than its timeout of {timeout_s:g} s; what it committed is kept. "
            "Raise the timeout, or run again to go on from there"
        ) from error
    raise error


def _prefect_failed(error: BaseException) -> bool:
    """Return whether `error`, which is not the body's own, comes of an API that is lost or fails.

    Prefect wraps some of what its API answers, a 503 to its question for a concurrency slot say, in errors of its own.
    """
    import httpx
    from prefect.exceptions import ParameterBindError, ParameterTypeError, SignatureMismatchError

    if isinstance(error, ParameterBindError | ParameterTypeError | SignatureMismatchError):
        return False
    return isinstance(error, httpx.HTTPError) or type(error).__module__.startswith("prefect.") or not LINK.alive()


def _as_interrupt(error: BaseException) -> BaseException:
    """Return Interrupted for Prefect's own word for a SIGTERM, and anything else as it is."""
    from prefect.exceptions import TerminationSignal

    guard = current_guard()
    if isinstance(error, TerminationSignal) and guard is not None:
        guard.received = guard.received or signal.SIGTERM
        return Interrupted(guard.received)
    return error


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0].rstrip(": ")[:200]


def run_flow(flow: Flow[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call a Prefect flow; when Prefect itself fails, the result or exception of the flow's body stands.

    The body runs once, without Prefect where the API is lost before it began. Inside `interruptible` a signal raises
    Interrupted in the body and comes out of here, whatever handlers Prefect and Ray install.
    """
    from prefect.exceptions import Abort

    guard = current_guard()
    original: Callable[P, R] = flow.fn
    if not LINK.alive():
        return original(*args, **kwargs)
    bodies: list[_Body[R]] = []

    @functools.wraps(original)
    def call_body(*body_args: P.args, **body_kwargs: P.kwargs) -> R:
        body = _Body(lambda: original(*body_args, **body_kwargs))
        bodies.append(body)
        try:
            if guard is None:
                return body()
            with guard.installed():
                return body()
        finally:
            # With nobody to report to, the engine is left on the way that asks nothing more of the API.
            interrupted = body.error is not None and not isinstance(body.error, Exception)
            if LINK.lost is not None or not LINK.alive(patience_s=0.5 if interrupted else 3.0):
                raise Abort("the API is lost")

    wrapped = copy.copy(flow)
    wrapped.fn = call_body
    try:
        result = wrapped(*args, **kwargs)
    except BaseException as error:
        body = bodies[-1] if bodies else None
        own = body.error if body is not None else None
        if isinstance(error, Exception | Abort):
            if body is None:
                if not isinstance(error, Abort) and not _prefect_failed(error):
                    raise
                LINK.lose(_short(error))
                return original(*args, **kwargs)
            if error is own:
                raise
            if LINK.lost is None:
                LINK.lose(_short(error))
            if own is not None:
                # `from None` would hide the body's own cause.
                raise own  # noqa: B904
            result = body.results[0]
        elif own is not None and not isinstance(own, Exception) and error is not own:
            raise own from None
        else:
            raise _as_interrupt(error) from None
    # Prefect swallows what is raised between the body's end and its own.
    if guard is not None:
        guard.check()
    return result
