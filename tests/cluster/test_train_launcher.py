"""Trainings of two workers by Ray Train: one process group, resumed after a death, ended by handle."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from train_loops import STEPS, Job, loop

from cluster.errors import InputError, ItemsError, StageError
from tasks.spec import Resources

HERE = str(Path(__file__).parent)
TOTAL = float(sum((step + 1) * 3 for step in range(STEPS)))


@pytest.fixture
def make(ray_session: Any, tmp_path: Path) -> Callable[..., Any]:
    from cluster.launcher import RayLauncher

    def make(**more: Any) -> Any:
        return RayLauncher(loop, tmp_path / "ray", code=[HERE], **more)

    (tmp_path / "job").mkdir()
    return make


def _tries(folder: Path, rank: int) -> int:
    return len(list(folder.glob(f"try-{rank}-*")))


def test_two_workers_whose_first_dies_once_go_on_where_they_were(make: Callable[..., Any], tmp_path: Path) -> None:
    told: list[tuple[str, Mapping[str, float]]] = []
    freed: list[int] = []
    launcher = make(before=lambda: freed.append(1), progress=lambda *news: told.append(news))
    folder = tmp_path / "job"
    launcher(Job(str(folder), "dies once"), "train-0123456789ab", 2, Resources(retries=1))
    assert (folder / "result").read_text() == f"{TOTAL} 2 gloo"
    assert _tries(folder, 0) == _tries(folder, 1) == 2
    assert freed == [1]
    # Resumed after step 2, nothing before it was done again.
    assert sorted(int(news["step"]) for _, news in told if news["step"] >= 3) == [3, 4, 5]
    assert {name for name, _ in told} == {"train-0123456789ab"}


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        ("input", InputError, r"^labels are wrong"),
        ("value", ItemsError, r"training failed .*rank 1: ValueError: bad row 17"),
    ],
)
def test_an_error_of_the_loop_is_not_tried_again(
    make: Callable[..., Any], tmp_path: Path, wrong: str, error: type[Exception], words: str
) -> None:
    folder = tmp_path / "job"
    with pytest.raises(error, match=words) as caught:
        make().launch(Job(str(folder), wrong), "train-x", 2, Resources(retries=3))
    assert type(caught.value) is error
    assert _tries(folder, 1) == 1
    assert not (folder / "result").exists()


def test_deaths_are_tried_again_so_many_times(make: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "job"
    with pytest.raises(StageError, match="workers failed in 2 tries"):
        make().launch(Job(str(folder), "dies always"), "train-x", 2, Resources(retries=1))
    assert _tries(folder, 1) == 2


def test_more_workers_than_fit_are_refused_before_anything_starts(make: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="7 workers need 1 CPU and 0 GPU each, and the cluster has room for 6"):
        make().launch(Job(str(tmp_path / "job")), "train-x", 7, Resources())
    assert not (tmp_path / "ray").exists()


def test_cancel_ends_every_rank(make: Callable[..., Any], tmp_path: Path) -> None:
    launcher = make()
    folder = tmp_path / "job"

    def cancel_when_both_run() -> None:
        pause = threading.Event()
        for _ in range(1200):
            if len(list(folder.glob("hangs-*"))) == 2:
                break
            pause.wait(0.05)
        launcher.cancel()

    canceller = threading.Thread(target=cancel_when_both_run)
    canceller.start()
    with pytest.raises(StageError, match="cancelled"):
        launcher.launch(Job(str(folder), "hangs"), "train-x", 2, Resources())
    canceller.join()
    pids = [int(path.name.rpartition("-")[2]) for path in folder.glob("try-*")]
    assert len(pids) == 2
    for pid in pids:
        # Most have ended by now, and one may end while it is looked at.
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(pid).wait(15)
