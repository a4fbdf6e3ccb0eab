"""Signals: one exception, a bounded clean-up, the right exit code. Real processes get real signals."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from typing import Any

import pytest

from flows.signals import Interrupted, SignalGuard, current_guard, interruptible

MAIN = """
    import signal, subprocess, sys, time
    from flows.signals import Interrupted, current_guard, interruptible, register_child

    def say(text):
        print(text, flush=True)

    def main(work, grace_s=9.0):
        try:
            with interruptible(grace_s):
                work()
        except Interrupted as stop:
            say("interrupted")
            return stop.exit_code
        return 0
"""


def expect(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline().strip() == line


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_first_signal_cleans_up_and_exits_with_its_code(start_script: Any, signum: int, code: int) -> None:
    process = start_script(
        MAIN
        + """
    def work():
        try:
            say("ready")
            signal.pause()
        finally:
            say("cleaned")
    sys.exit(main(work))
    """
    )
    expect(process, "ready")
    process.send_signal(signum)
    out, err = process.communicate(timeout=20)
    assert out.split() == ["cleaned", "interrupted"]
    assert process.returncode == code
    assert err == ""


def test_second_signal_exits_at_once_and_kills_children(start_script: Any) -> None:
    process = start_script(
        MAIN
        + """
    def work():
        child = subprocess.Popen(["sleep", "600"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        register_child(child)
        try:
            say(child.pid)
            signal.pause()
        finally:
            say("cleaning")
            time.sleep(600)
            say("slept")
    sys.exit(main(work))
    """
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.send_signal(signal.SIGINT)
    expect(process, "cleaning")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=20)
    # The second signal's code and no word: the end of the first one's 9 s exits with 130 and says why. The sleep never returned.
    assert (process.returncode, out, err) == (143, "", "")
    assert not runs(child)


def runs(pid: int) -> bool:
    """Return whether a process is alive and no zombie, giving a killed one a moment to go."""
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        try:
            with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return False
        except FileNotFoundError:
            return False
    return True


def test_the_last_words_are_said_where_a_second_signal_ends_it(start_script: Any) -> None:
    process = start_script(
        """
    import signal, time
    from flows.signals import interruptible

    with interruptible(last_words=lambda: "go on with: this"):
        try:
            print("ready", flush=True)
            signal.pause()
        finally:
            print("cleaning", flush=True)
            time.sleep(600)
    """
    )
    expect(process, "ready")
    process.send_signal(signal.SIGINT)
    expect(process, "cleaning")
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=20)
    assert (process.returncode, error) == (143, "secateur: go on with: this\n")


def test_clean_up_that_hangs_is_cut_off(start_script: Any) -> None:
    process = start_script(
        MAIN
        + """
    def work():
        try:
            say("ready")
            signal.pause()
        finally:
            time.sleep(600)
    sys.exit(main(work, grace_s=0.5))
    """
    )
    expect(process, "ready")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 143
    assert "over 0.5 s" in err


def test_exit_that_hangs_is_cut_off_for_a_command(start_script: Any) -> None:
    process = start_script(
        """
        import atexit, signal, sys, time
        from flows.signals import Interrupted, interruptible
        atexit.register(time.sleep, 600)
        try:
            with interruptible(0.5, until_exit=True):
                print("ready", flush=True)
                signal.pause()
        except Interrupted as stop:
            sys.exit(stop.exit_code)
        """
    )
    expect(process, "ready")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130


def test_swallowed_interrupt_is_found_by_check(start_script: Any) -> None:
    process = start_script(
        MAIN
        + """
    def work():
        try:
            say("ready")
            signal.pause()
        except KeyboardInterrupt:
            say("swallowed")
        current_guard().check()
        say("never")
    sys.exit(main(work))
    """
    )
    expect(process, "ready")
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=20)
    assert out.split() == ["swallowed", "interrupted"]
    assert process.returncode == 130


def test_handlers_that_a_library_replaced_are_put_back(start_script: Any) -> None:
    process = start_script(
        MAIN
        + """
    def work():
        theirs = lambda number, frame: say("theirs")
        signal.signal(signal.SIGTERM, theirs)
        with current_guard().installed():
            assert signal.getsignal(signal.SIGTERM) is not theirs
        assert signal.getsignal(signal.SIGTERM) is theirs
        current_guard().install()
        say("ready")
        signal.pause()
    sys.exit(main(work))
    """
    )
    expect(process, "ready")
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert out.split() == ["interrupted"]
    assert process.returncode == 143


def test_one_wish_that_comes_twice_is_one(start_script: Any) -> None:
    process = start_script(
        MAIN
        + """
    def work():
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGINT)
            say("cleaned")
    sys.exit(main(work))
    """
    )
    out, _ = process.communicate(timeout=20)
    assert out.split() == ["cleaned", "interrupted"]
    assert process.returncode == 130


def test_ignored_sigint_stays_ignored_and_old_handlers_come_back() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible() as guard:
            assert current_guard() is guard
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGINT)
            with pytest.raises(Interrupted) as caught:
                os.kill(os.getpid(), signal.SIGTERM)
            assert caught.value.exit_code == 143
            guard.received = None
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert current_guard() is None


def test_outside_the_main_thread_nothing_is_installed() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    def other() -> None:
        with interruptible() as guard:
            assert isinstance(guard, SignalGuard)
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen == [before]
