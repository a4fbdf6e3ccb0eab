"""Scheduled runs: a Prefect deployment of the flow on a process work pool, and the worker that serves it."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.errors import InputError, SecateurError
from cluster.storage import Store
from flows.api_link import LINK
from flows.prefect_settings import client_environment, configured_api_url, environment
from flows.signals import Interrupted, exit_at_once

if TYPE_CHECKING:
    from prefect import Flow
    from prefect.schedules import Schedule

FLOW = "flows.deployed.prune"
POOL = "secateur"

# A run interrupted by SIGTERM may take 9 s; the worker itself is to be gone within 10 s.
RUN_GRACE_S = 8.0


@dataclass(frozen=True)
class Deployed:
    """Name a deployment that was made or updated."""

    name: str
    id: str
    pool: str
    cron: str | None


def _require_api_url() -> str:
    url = configured_api_url()
    if url is None:
        raise InputError(
            "no Prefect server is named: a deployment outlives this command, so it needs one that does too. "
            "Start it with `prefect server start`, set PREFECT_API_URL=http://127.0.0.1:4200/api, and run this again"
        )
    return url


@contextlib.contextmanager
def _lasting_api() -> Iterator[None]:
    """Use the user's Prefect server inside the block, with Prefect's log kept off the terminal."""
    url = _require_api_url()
    with (
        tempfile.TemporaryDirectory(prefix="secateur-deploy-") as scratch,
        environment(client_environment(Path(scratch), url)),
    ):
        LINK.reset(url)
        if (reason := LINK.probe()) is not None:
            raise InputError(
                f"the Prefect API {url} does not answer ({reason}); start it with `prefect server start`, "
                "or set PREFECT_API_URL to one that runs"
            )
        yield


def load_flow(entrypoint: str) -> Flow[..., Any]:
    """Return the flow that `entrypoint`, package.module.function, names. Raises InputError."""
    from prefect import Flow

    module, _, attribute = entrypoint.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"flow {entrypoint!r} cannot be imported ({error}); give package.module.function") from error
    if not isinstance(found, Flow):
        raise InputError(f"flow {entrypoint!r} is a {type(found).__name__}; give the name of a Prefect flow")
    return found


def _schedule(cron: str) -> Schedule:
    from prefect.schedules import Cron

    try:
        return Cron(cron)
    except ValueError as error:
        raise InputError(
            f"cron {cron!r} is not a schedule ({error}); give five fields, minute hour day month weekday, "
            "for example '0 3 * * *' for every night at 3 (UTC)"
        ) from error


def deploy(
    config: Mapping[str, Any],
    *,
    name: str,
    store: str,
    ray: str = "local",
    cron: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    pool: str = POOL,
    entrypoint: str = FLOW,
) -> Deployed:
    """Make, or bring up to date, the deployment `name` of the flow, with `config`, `store`, `ray` and `parameters`.

    One run at a time: a run that is due while another one goes on is cancelled. The process work pool is made where it
    is missing. `config` must hold plain JSON values, and no path relative to this machine's working folder. Raises
    InputError on a bad `cron`, and without a Prefect server that lasts.
    """
    with _lasting_api():
        schedules = [_schedule(cron)] if cron is not None else []
        from prefect.client.orchestration import get_client
        from prefect.client.schemas.actions import WorkPoolCreate
        from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
        from prefect.deployments.runner import RunnerDeployment
        from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
        from prefect.types.entrypoint import EntrypointType
        from prefect.workers.process import ProcessWorker

        with get_client(sync_client=True) as client:
            try:
                kind = client.read_work_pool(pool).type
            except ObjectNotFound:
                template = ProcessWorker.get_default_base_job_template()
                # Another `deploy` may make it at the same moment.
                with contextlib.suppress(ObjectAlreadyExists):
                    client.create_work_pool(WorkPoolCreate(name=pool, type="process", base_job_template=template))
                kind = "process"
        if kind != "process":
            raise InputError(f"work pool {pool!r} is of type {kind!r}: runs need one of type process; name another")
        deployment = RunnerDeployment.from_flow(
            load_flow(entrypoint),
            name=name,
            schedules=schedules,
            parameters={"config": dict(config), "store": Store(store).uri, "ray": ray, **(parameters or {})},
            concurrency_limit=ConcurrencyLimitConfig(
                limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW
            ),
            work_pool_name=pool,
            # A path would load the file a second time, under another module name.
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
        made = deployment.apply()
        return Deployed(f"{deployment.flow_name}/{name}", str(made), pool, cron)


def _children() -> list[int]:
    """Return the processes that this one started and that still run. Empty where the kernel does not tell."""
    found: list[int] = []
    for path in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(pid) for pid in path.read_text().split()]
    return found


async def _end_runs() -> None:
    """Ask the worker's runs to end, and give them time to clean up: left to itself, Prefect kills them."""
    import anyio

    for pid in _children():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    with anyio.move_on_after(RUN_GRACE_S):
        while _children():
            await anyio.sleep(0.05)


def serve(pool: str = POOL, *, once: bool = False) -> None:
    """Run what is due on `pool`, scheduled or asked for, each in a process of its own, until a signal comes.

    Ends by raising Interrupted, after the runs in progress were stopped. With `once`, waits for what is due now and
    returns. Prefect's own log settings hold: the log is what one watches here.
    """
    import anyio

    url = _require_api_url()
    from prefect.workers.process import ProcessWorker

    LINK.reset(url)
    if (reason := LINK.probe()) is not None:
        raise InputError(f"the Prefect API {url} does not answer ({reason}); start it with `prefect server start`")
    received: list[int] = []

    async def watch(scope: anyio.CancelScope) -> None:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for number in signals:
                if received:
                    exit_at_once(128 + number)
                received.append(number)
                await _end_runs()
                scope.cancel()

    async def work() -> None:
        async with anyio.create_task_group() as group:
            scope = anyio.CancelScope()
            group.start_soon(watch, scope)
            with scope:
                worker = ProcessWorker(work_pool_name=pool)
                await worker.start(run_once=once)
            group.cancel_scope.cancel()

    try:
        anyio.run(work)
    except Exception as error:
        raise SecateurError(f"the worker of pool {pool!r} ended: {type(error).__name__}: {error}") from error
    if received:
        raise Interrupted(received[0])
