"""Attempts: what a reader learns of one that ended well, badly, by a signal, by SIGKILL, or that still runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import InputError, StageError, StoreError
from cluster.storage import Store
from flows.attempts import Attempt, StageTiming, attempt_states, stage_timings
from flows.repair import verify_and_repair
from flows.show import show_status
from flows.signals import Interrupted
from tests.flows.verify_case import cut, made, parts, plan, tree


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def test_running_then_done(store: Store) -> None:
    with Attempt(store, "quick-1", {"secateur": "0.1.0"}) as attempt:
        (state,) = attempt_states(store, "quick-1")
        assert (state.name, state.state, state.ended, state.pid) == (attempt.name, "running", None, os.getpid())
        assert state.versions == {"secateur": "0.1.0"}
        assert state.heartbeat is not None
    (state,) = attempt_states(store, "quick-1")
    assert state.state == "done"
    assert state.ended is not None
    assert state.started <= state.ended
    assert attempt_states(store, "another") == []


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (InputError("label column is missing"), "failed"),
        (SystemExit(1), "failed"),
        (SystemExit(0), "done"),
        (Interrupted(signal.SIGTERM), "interrupted"),
        (KeyboardInterrupt(), "interrupted"),
    ],
)
def test_final_states(store: Store, error: BaseException, expected: str) -> None:
    with pytest.raises(type(error)), Attempt(store, "run"):
        raise error
    (state,) = attempt_states(store, "run")
    assert state.state == expected
    assert (state.error is None) == (expected == "done")
    if isinstance(error, InputError):
        assert state.error == "InputError: label column is missing"


def test_secrets_of_the_environment_stay_out(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    with pytest.raises(StoreError), Attempt(store, "run"):
        raise StoreError("signing with wJalrXUtnFEMI failed")
    (state,) = attempt_states(store, "run")
    assert state.error == "StoreError: signing with <AWS_SECRET_ACCESS_KEY> failed"
    for name in store.list("runs"):
        assert b"wJalrXUtnFEMI" not in store.read(name)


def test_stage_times_are_kept_for_every_attempt(store: Store) -> None:
    with pytest.raises(StoreError), Attempt(store, "run") as first:
        first.record_stage("shard", 1.23456, 4, 4)
        raise StoreError("gone")
    with Attempt(store, "run") as second:
        second.record_stage("shard", 0.01, 0, 4)
        second.record_stage("score", 12.5, 3, 4)
        assert len(second.stages) == 2
    states = {state.name: state for state in attempt_states(store, "run")}
    assert states[first.name].stages == (StageTiming("shard", 1.235, 4, 4),)
    assert [stage.name for stage in states[second.name].stages] == ["shard", "score"]
    assert sorted(stage.seconds for stage in stage_timings(store, "run")) == [0.01, 1.235, 12.5]


def test_heartbeat_is_renewed(store: Store) -> None:
    beats = threading.Semaphore(0)
    replace = store.replace

    def counted(name: str, data: bytes) -> None:
        replace(name, data)
        beats.release()

    store.replace = counted  # type: ignore[method-assign]
    with Attempt(store, "run", heartbeat_s=0.01):
        for _ in range(3):
            assert beats.acquire(timeout=10)
    (state,) = attempt_states(store, "run")
    assert state.heartbeat is not None
    assert state.heartbeat >= state.started


def test_old_heartbeat_means_lost(store: Store) -> None:
    with Attempt(store, "run"):
        now = datetime.now(UTC)
        assert attempt_states(store, "run", now + timedelta(seconds=100))[0].state == "running"
        assert attempt_states(store, "run", now + timedelta(seconds=130))[0].state == "lost"


def test_killed_process_is_lost_at_once(store: Store, start_script: Any) -> None:
    process: subprocess.Popen[str] = start_script(
        """
        import signal, sys
        from cluster.storage import Store
        from flows.attempts import Attempt
        with Attempt(Store(sys.argv[1]), "run"):
            print("ready", flush=True)
            signal.pause()
        """,
        store.uri,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    assert [state.state for state in attempt_states(store, "run")] == ["running"]
    process.kill()
    process.wait()
    assert [state.state for state in attempt_states(store, "run")] == ["lost"]


def test_process_of_another_machine_is_judged_by_its_heartbeat(store: Store) -> None:
    with Attempt(store, "run") as attempt:
        name = f"runs/run/attempts/{attempt.name}.json"
        text = store.read(name).replace(f'"pid":{os.getpid()}'.encode(), b'"pid":999999999')
        store.replace(name, text)
        assert attempt_states(store, "run")[0].state == "lost"
        store.replace(name, text.replace(b'"process_space":"', b'"process_space":"other'))
        assert attempt_states(store, "run")[0].state == "running"


def test_end_that_cannot_be_written_warns_and_changes_nothing(store: Store) -> None:
    warnings: list[str] = []

    def refuse(name: str, data: bytes) -> bool:
        raise StoreError("no space left")

    with pytest.raises(InputError, match="wrong"), Attempt(store, "run", warn=warnings.append):
        store.create = refuse  # type: ignore[method-assign]
        raise InputError("wrong")
    assert len(warnings) == 1
    assert "no space left" in warnings[0]


def test_start_is_create_only(store: Store) -> None:
    with Attempt(store, "run") as attempt:
        assert not store.create(f"runs/run/attempts/{attempt.name}.json", b"{}")


def test_facts_are_kept_in_the_record(store: Store) -> None:
    facts: dict[str, Any] = {"create_only": True, "multipart": False, "endpoint": "127.0.0.1", "parts": 3}
    with Attempt(store, "run", facts=facts):
        assert attempt_states(store, "run")[0].facts == facts
    assert attempt_states(store, "run")[0].facts == facts


def test_an_attempt_elsewhere_is_lost_after_120_s_without_a_heartbeat(store: Store) -> None:
    with Attempt(store, "run") as attempt:
        name = f"runs/run/attempts/{attempt.name}.json"
        store.replace(name, store.read(name).replace(b'"process_space":"', b'"process_space":"other'))
        beat = attempt_states(store, "run")[0].heartbeat
        assert beat is not None
        last = datetime.fromisoformat(beat)
        assert attempt_states(store, "run", last + timedelta(seconds=119))[0].state == "running"
        assert attempt_states(store, "run", last + timedelta(seconds=121))[0].state == "lost"


NONSENSE = [b"", b"torn {", b"null", b"[]", b"7", b"{}", b'"text"', b"\xff\xfe", b"[" * 5000]


@pytest.mark.parametrize("data", NONSENSE)
@pytest.mark.parametrize(
    ("suffix", "state"), [("", "running"), (".end", "running"), (".heartbeat", "running"), (".stages", "running")]
)
def test_a_file_that_makes_no_sense_is_named_and_counted_and_hides_no_other(
    store: Store, suffix: str, state: str, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with Attempt(store, "run") as good, Attempt(store, "run") as bad:
        bad.record_stage("shard", 1.0, 1, 1)
        name = f"runs/run/attempts/{bad.name}{suffix}.json"
        store.replace(name, data)
        states = {state.name: state for state in attempt_states(store, "run")}
        empty = suffix == ".stages" and data in (b"[]", b"{}")
        assert states[good.name].state == "running"
        assert states[bad.name].state == state
        assert states[bad.name].unreadable == (() if empty else (name,))
        assert json.loads(json.dumps([asdict(state) for state in states.values()]))
        assert (f"1 file(s) of attempts at run cannot be read, first {name}" in caplog.text) is not empty
        store.remove(name)


@pytest.mark.parametrize("start", ["cut short", "lost"])
def test_an_attempt_whose_start_cannot_be_read_protects_as_long_as_its_heartbeat_is_fresh(
    start: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(str(made(tmp_path)))
    run = plan().run_name
    cut(parts(Path(store.uri), "score")[0])
    with Attempt(store, run) as attempt:
        name = f"runs/{run}/attempts/{attempt.name}.json"
        if start == "lost":
            store.remove(name)
        else:
            store.replace(name, store.read(name)[:20])
        before = tree(Path(store.uri))
        for repair in ({"heal": True, "recompute": False}, {"heal": False, "recompute": True}):
            with pytest.raises(StageError, match=f"run {run} is running"):
                verify_and_repair(run, store.uri, **repair, as_json=False)
        assert tree(Path(store.uri)) == before
        show_status(run, store.uri, as_json=False)
        assert f"  attempt {attempt.name}  running\n    cannot be read: {name}\n" in capsys.readouterr().out
        # No sign of life is left: neither file says when it last lived.
        store.replace(name.replace(".json", ".heartbeat.json"), b"{")
        assert attempt_states(store, run)[0].state == "unreadable"
        store.remove(name)
        assert attempt_states(store, run)[0].state == "unreadable"
    assert attempt_states(store, run)[0].state == "done"


def test_an_end_that_cannot_be_read_of_a_process_that_is_gone_is_unreadable(store: Store) -> None:
    with Attempt(store, "run") as attempt:
        base = f"runs/run/attempts/{attempt.name}"
        store.replace(f"{base}.json", store.read(f"{base}.json").replace(f'"pid":{os.getpid()}'.encode(), b'"pid":999999999'))
        assert attempt_states(store, "run")[0].state == "lost"
        store.replace(f"{base}.end.json", b"{")
        assert attempt_states(store, "run")[0].state == "unreadable"


def test_status_prints_what_the_store_keeps_and_what_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(str(made(tmp_path)))
    run = plan().run_name
    with Attempt(store, run, facts={"create_only": True}) as attempt:
        pass
    store.replace(name := f"runs/{run}/attempts/{attempt.name}.stages.json", b"{")
    show_status(run, store.uri, as_json=False)
    out = capsys.readouterr().out
    assert 'done  store {"create_only": true}\n    cannot be read: ' + name + "\n" in out
    show_status(None, store.uri, as_json=False)
    assert "1 attempts, 1 of their files cannot be read" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("started", "yesterday"), ("started", "2026-01-01T00:00:00"), ("started", 7), ("host", None), ("pid", "7"),
        ("pid", -1), ("pid", 2**70), ("process_space", 3), ("versions", []), ("versions", {"torch": 2}), ("facts", "x"),
        ("facts", {"a": []}), ("facts", {"a": None}),
    ],
)  # fmt: skip
def test_wrong_values_in_a_record_are_found(store: Store, name: str, value: Any) -> None:
    with Attempt(store, "run") as attempt:
        record = f"runs/run/attempts/{attempt.name}.json"
        store.replace(record, json.dumps({**json.loads(store.read(record)), name: value}).encode())
        (state,) = attempt_states(store, "run")
        assert (state.state, state.unreadable, state.started) == ("running", (record,), attempt.name)
        (later,) = attempt_states(store, "run", datetime.now(UTC) + timedelta(seconds=130))
        assert (later.state, later.unreadable) == ("unreadable", (record,))


@pytest.mark.parametrize(
    ("suffix", "body"),
    [
        ("heartbeat", {"time": "soon"}), ("heartbeat", {"time": 5}), ("end", {"state": "done"}),
        ("end", {"state": "sold", "ended": "2026-01-01T00:00:00+00:00"}),
        ("end", {"state": "failed", "ended": "2026-01-01T00:00:00+00:00", "error": 3}),
        ("stages", [{"name": "shard"}]), ("stages", [3]),
        ("stages", [{"name": "shard", "seconds": "x", "computed": 1, "items": 1}]),
        ("stages", [{"name": "shard", "seconds": 1.0, "computed": float("inf"), "items": 1}]),
    ],
)  # fmt: skip
def test_wrong_values_beside_a_record_are_found(store: Store, suffix: str, body: Any) -> None:
    with Attempt(store, "run") as attempt:
        name = f"runs/run/attempts/{attempt.name}.{suffix}.json"
        store.replace(name, json.dumps(body).encode())
        (state,) = attempt_states(store, "run")
        assert state.unreadable == (name,)
        assert stage_timings(store, "run") == []
        store.remove(name)


def test_a_file_of_a_name_that_no_attempt_gives_is_named_and_passed_over(store: Store) -> None:
    with Attempt(store, "run") as attempt:
        (Path(store.uri.removeprefix("file://")) / "runs/run/attempts/my copy.json").write_text("{}")
        running, odd = attempt_states(store, "run")
        assert (running.name, running.state, running.unreadable) == (attempt.name, "running", ())
        assert (odd.state, odd.unreadable) == ("unreadable", ("runs/run/attempts/my copy.json",))
