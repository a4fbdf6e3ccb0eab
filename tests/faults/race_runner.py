"""Runs of one configuration racing on one store, forked from one warm process: `python -m tests.faults.race_runner FOLDER N`.

Each round starts three at once on a fresh store. Prints one JSON document: {"units": N, "trained": [how many units each
run trained, by round], "wrong": [...]}.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from cluster.storage import Store
from flows.plan import Plan, make_plan
from tasks.proxy_worker import ProxyWorker
from tasks.train_worker import TrainWorker
from tests.faults import tiny_run as tiny

RUNNERS = 3


def run(plan: Plan, root: Path, told: Path, gate: int) -> None:
    """Run to the report once the gate is closed, and tell which units were trained here."""
    trained: list[str] = []

    def counting(compute: Any) -> Any:
        def counted(worker: Any, item: Any, loaded: Any) -> Any:
            trained.append(item.key)
            return compute(worker, item, loaded)

        return counted

    for kind in (ProxyWorker, TrainWorker):
        kind.compute = counting(kind.compute)  # type: ignore[method-assign]
    os.read(gate, 1)
    tiny.run_until("report", plan, Store(str(root)))
    told.write_text(json.dumps(trained))


def main(folder: Path, rounds: int) -> None:
    """Do the rounds and print what was found."""
    plan = make_plan(tiny.make_config(folder, proxies=4))
    units = {*plan.proxies, *(training.key for training in plan.trainings)}
    tiny.warm_up()
    alone = tiny.clone(folder / "nothing", folder / "alone")
    if tiny.in_child(partial(tiny.run_until, "report", plan, Store(str(alone)))):
        raise SystemExit("the run alone failed")
    want = tiny.contents(alone)
    wrong: list[str] = []
    shares: list[list[int]] = []
    for number in range(rounds):
        root = tiny.clone(folder / "nothing", folder / "raced")
        told = [folder / f"told-{runner}" for runner in range(RUNNERS)]
        gate, opener = os.pipe()

        def act(path: Path, root: Path = root, gate: int = gate, opener: int = opener) -> None:
            os.close(opener)
            run(plan, root, path, gate)

        children = [tiny.fork(partial(act, path)) for path in told]
        os.close(gate)
        os.close(opener)
        codes = [tiny.wait(child) for child in children]
        if any(codes):
            wrong.append(f"round {number}: runs ended with {codes}")
            continue
        lists = [json.loads(path.read_text()) for path in told]
        counts = Counter(key for trained in lists for key in trained)
        if counts != Counter(units):
            wrong.append(f"round {number}: units trained {sorted(counts.values())} times, {len(units)} there are")
        if names := list(tiny.differing(root, want)):
            wrong.append(f"round {number}: differs from the run alone in {names}")
        shares.append([len(trained) for trained in lists])
        shutil.rmtree(root)
    print(json.dumps({"units": len(units), "trained": shares, "wrong": wrong}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
