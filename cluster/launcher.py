"""One training by several workers: Ray Train starts them and forms their group; the loop comes from the caller."""

from __future__ import annotations

import contextlib
import logging
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import exceptions as ray_errors

from cluster.capacity import check_fits
from cluster.code import add_code_dirs
from cluster.errors import ItemsError, SecateurError, StageError
from cluster.host import portable
from cluster.shape import check_shape

TICK_SECONDS = 1.0

_log = logging.getLogger("secateur.ray")


def _work(config: dict[str, Any]) -> None:
    """Be one rank: import the user's code, run the loop, and send rank 0's reports to the conductor."""
    import ray.train
    import torch

    add_code_dirs(Path(folder).absolute() for folder in config["code"])
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    if config["gpus"]:
        from ray.train.torch import get_device

        torch.cuda.set_device(get_device())
    else:
        torch.set_num_threads(max(1, int(config["cpus"])))

    def report(metrics: Mapping[str, float]) -> None:
        if rank == 0:
            config["conductor"].note.remote(dict(metrics))

    loop, job = ray.cloudpickle.loads(config["payload"])
    try:
        loop(job, rank, world_size, report)
    except Exception as error:
        raise portable(error, f"in rank {rank} of {world_size}") from None


class Conductor:
    """Run one Ray Train fit in a process of its own, so that ending this process, by handle, ends all of the fit."""

    def __init__(self) -> None:
        self._notes: list[dict[str, float]] = []
        self._lock = threading.Lock()

    def note(self, metrics: dict[str, float]) -> None:
        """Take a report of rank 0."""
        with self._lock:
            self._notes.append(metrics)

    def notes(self) -> list[dict[str, float]]:
        """Hand over the reports that came since the last call."""
        with self._lock:
            notes, self._notes = self._notes, []
        return notes

    def fit(self, config: dict[str, Any], name: str, folder: str, world_size: int) -> dict[int, Exception]:
        """Train; return the error of each rank that failed, -1 where it was none of theirs, none where all is well."""
        from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
        from ray.train.torch import TorchConfig, TorchTrainer

        logging.getLogger("ray.train").setLevel(logging.ERROR)
        gpus = config["gpus"]
        config["conductor"] = ray.get_runtime_context().current_actor
        trainer = TorchTrainer(
            _work,
            train_loop_config=config,
            torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=world_size,
                use_gpu=bool(gpus),
                resources_per_worker={"CPU": config["cpus"], **({"GPU": gpus} if gpus else {})},
            ),
            # Losses of nodes that were announced are retried inside; which other failures are is decided by `launch`,
            # since Ray Train would repeat an error of the user's code as often as a death.
            run_config=RunConfig(name=name, storage_path=folder, failure_config=FailureConfig(max_failures=0)),
        )
        try:
            trainer.fit()
        except WorkerGroupError as error:
            return {rank: _bare(failure) for rank, failure in sorted(error.worker_failures.items())}
        except ControllerError as error:
            # A worker that dies while the controller sets the group up is no rank's failure there.
            return {-1: _bare(error.controller_failure)}
        return {}


RemoteConductor: Any = ray.remote(Conductor)


def _bare(error: Exception) -> Exception:
    """Return the exception the loop raised, out of what Ray wrapped around it."""
    while True:
        inner = getattr(error, "_base_exc", None) or getattr(error, "cause", None)
        if not isinstance(inner, Exception) or inner is error:
            return error
        error = inner


def own_error(failures: Mapping[int, Exception]) -> Exception | None:
    """Return the loop's own error among those of the ranks, which would come again; None where a death explains them.

    Deaths come as Ray's errors. A rank that lost its peer raises a RuntimeError (gloo, NCCL) or an OSError: neither can
    be told from the loop's own, so both are tried again.
    """
    errors = [failures[rank] for rank in sorted(failures)]
    for error in errors:
        if isinstance(error, SecateurError):
            return error
    if any(type(error).__module__.partition(".")[0] == "ray" for error in errors):
        return None
    return next((error for error in errors if not isinstance(error, RuntimeError | OSError)), None)


def _told(failures: Mapping[int, Exception]) -> str:
    return "; ".join(
        f"{f'rank {rank}' if rank >= 0 else 'the trainer'}: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
        for rank, error in failures.items()
    )


class RayLauncher:
    """Train one model with several workers; the cluster's side of `tasks.train.Launch`.

    Every rank runs `loop(job, rank, world_size, report)` in one process group, gloo, or nccl where workers have GPUs.
    `folder` is for Ray Train's bookkeeping; what must survive, the loop keeps in the store. `before` is called ahead of
    every fit, to free what idle workers hold; `progress(name, metrics)` gets rank 0's reports.
    """

    def __init__(
        self,
        loop: Callable[[Any, int, int, Callable[..., None]], Any],
        folder: Path,
        code: Sequence[str] = (),
        *,
        before: Callable[[], None] | None = None,
        progress: Callable[[str, Mapping[str, float]], None] | None = None,
    ) -> None:
        self.loop, self.folder, self.code = loop, folder, tuple(str(place) for place in code)
        self.before, self.progress = before, progress
        self._cancelled = False
        self._conductors: list[Any] = []

    def __call__(self, job: Any, name: str, world_size: int, resources: Any) -> None:
        """Do `launch`."""
        self.launch(job, name, world_size, resources)

    def launch(self, job: Any, name: str, world_size: int, resources: Any) -> None:
        """Return when every rank has; `resources` (cpus, gpus, retries) are those of each worker.

        A fit that lost a worker or node starts again up to `resources.retries` times, and goes on from what the loop
        has committed. Raises the loop's own SecateurError as it was, StageError for other failures, and InputError,
        before anything starts, when the cluster has no room for that many workers.
        """
        shape = check_shape(resources.cpus, resources.gpus)
        check_fits(shape, name, world_size)
        if self.before is not None:
            self.before()
        pickler: Any = ray.cloudpickle
        payload = pickler.dumps((self.loop, job))
        config = {"payload": payload, "code": self.code, "cpus": shape.cpus, "gpus": shape.gpus}
        self.folder.mkdir(parents=True, exist_ok=True)
        for attempt in range(resources.retries + 1):
            failures = self._fit(config, name, world_size)
            if not failures:
                return
            own = own_error(failures)
            if isinstance(own, SecateurError):
                raise own
            if own is not None:
                told = _told(failures)
                raise ItemsError(f"{name}: the training failed ({told}). Mend the cause and run again") from own
            _log.info("%s: try %d of %d failed (%s)", name, attempt + 1, resources.retries + 1, _told(failures))
        raise ItemsError(
            f"{name}: workers failed in {resources.retries + 1} tries ({_told(failures)}); its checkpoints are in the "
            "store: run again to go on from the newest"
        ) from failures[min(failures)]

    def cancel(self) -> None:
        """End all fits now, by handle. Safe from any thread."""
        self._cancelled = True
        for conductor in list(self._conductors):
            _end(conductor)

    def _fit(self, config: dict[str, Any], name: str, world_size: int) -> dict[int, Exception]:
        """Run one try in a conductor on this machine; it ends with this call, whatever happens."""
        here = ray.get_runtime_context().get_node_id()
        conductor = RemoteConductor.options(
            num_cpus=0,
            max_concurrency=4,
            label_selector={"ray.io/node-id": here},
            # Relative paths of shipped code start at the working folder, so workers stay in it.
            runtime_env={"env_vars": {"RAY_CHDIR_TO_TRIAL_DIR": "0", "RAY_TRAIN_V2_ENABLED": "1"}},
        ).remote()
        self._conductors.append(conductor)
        try:
            # A name of its own for every try: Ray Train would take up its record of the last one, which has failed.
            run = f"{name}-{uuid.uuid4().hex[:8]}"
            fit = conductor.fit.remote(dict(config), run, str(self.folder), world_size)
            while True:
                done, _ = ray.wait([fit], timeout=TICK_SECONDS)
                if self._cancelled:
                    raise StageError(f"{name}: cancelled; run the same command again to go on")
                for metrics in ray.get(conductor.notes.remote()) if self.progress else ():
                    self.progress(name, metrics)  # type: ignore[misc]
                if done:
                    failures: dict[int, Exception] = ray.get(fit)
                    return failures
        except ray_errors.RayActorError as error:
            if self._cancelled:
                raise StageError(f"{name}: cancelled; run the same command again to go on") from error
            return {-1: error}
        finally:
            self._conductors.remove(conductor)
            _end(conductor)


def _end(conductor: Any) -> None:
    with contextlib.suppress(ray_errors.RayError, RuntimeError, ValueError):
        if ray.is_initialized():
            ray.kill(conductor, no_restart=True)
