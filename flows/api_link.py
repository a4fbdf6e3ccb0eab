"""Whether Prefect's API is still there. Losing it costs the view of the run, never the run: one warning, and on."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable

from cluster.control_characters import show_controls

PROBE_TIMEOUT_S = 5.0

# A user's server that is being restarted gets this long before the run goes on without it.
PATIENCE_S = 3.0


def _print(message: str) -> None:
    print(show_controls(f"secateur: warning: {message}"), file=sys.stderr, flush=True)


class ApiLink:
    """Know the state of the Prefect API in this process. Safe to use from several threads."""

    def __init__(self) -> None:
        self.warn: Callable[[str], None] = _print
        self._lock = threading.Lock()
        self._process_alive: Callable[[], bool] | None = None
        self.url = ""
        self.lost: str | None = None
        self.artifacts_off = False
        self._warned = False

    def reset(self, url: str = "", process_alive: Callable[[], bool] | None = None) -> None:
        """Begin anew with the API at `url`; `process_alive()` tells whether a server of our own runs."""
        self.url = url
        self.lost = None
        self.artifacts_off = False
        self._warned = False
        self._process_alive = process_alive
        if "prefect.events.worker" in sys.modules:
            self._bound_events()

    def warn_once(self, message: str) -> None:
        """Say the one thing about Prefect that is said in a whole run."""
        with self._lock:
            first, self._warned = not self._warned, True
        if first:
            self.warn(message)

    def probe(self, timeout_s: float = PROBE_TIMEOUT_S) -> str | None:
        """Ask the API once; return None when it answers, else why not."""
        import httpx
        from prefect.client.orchestration import get_client
        from prefect.settings import temporary_settings

        if self._process_alive is not None and not self._process_alive():
            return "its server has ended"
        wait = {"PREFECT_CLIENT_MAX_RETRIES": 0, "PREFECT_API_REQUEST_TIMEOUT": timeout_s}
        try:
            with temporary_settings(wait):
                error = get_client(sync_client=True).api_healthcheck()
        except (OSError, ValueError, RuntimeError) as failure:
            error = failure
        if isinstance(error, httpx.HTTPStatusError):
            status = error.response.status_code
            # Prefect Cloud has no /health below a workspace: an answer that is no refusal will do.
            return f"HTTP status {status}" if status in (401, 403) or status >= 500 else None
        return None if error is None else f"{type(error).__name__}: {error}".rstrip(": ")

    def alive(self, patience_s: float = PATIENCE_S) -> bool:
        """Return whether the API answers, asking again for `patience_s`. Once lost, it stays lost for this run."""
        if self.lost is not None:
            return False
        deadline = time.monotonic() + patience_s
        while (reason := self.probe(timeout_s=max(1.0, patience_s))) is not None:
            gone_for_good = self._process_alive is not None and not self._process_alive()
            if gone_for_good or time.monotonic() + 0.5 > deadline:
                self.lose(reason)
                return False
            time.sleep(0.5)
        return True

    def lose(self, reason: str) -> None:
        """Go on without Prefect from here: warn, and drop what was still to be sent."""
        if self.lost is None:
            self.lost = reason
            self.warn_once(
                f"the Prefect API {self.url} is lost ({reason}); the run goes on without it, "
                "and its results are not affected"
            )
            self._drop_pending()

    def close(self) -> None:
        """Send what is still to be sent, for a few seconds at most, before the server is stopped."""
        if "prefect.events.worker" not in sys.modules or self.lost is not None:
            return
        from prefect.events.worker import EventsWorker
        from prefect.logging.handlers import APILogWorker

        # Left to itself the drain happens at the interpreter's exit, after our server, and then retries for minutes.
        with contextlib.suppress(Exception):
            EventsWorker.drain_all(timeout=5.0, at_exit=False)
        with contextlib.suppress(Exception):
            APILogWorker.drain_all(timeout=5.0, at_exit=False)

    @staticmethod
    def _bound_events() -> None:
        """Have Prefect's event sender try twice, not eleven times with pauses, to reach a server that is gone."""
        from prefect.events.clients import PrefectEventsClient
        from prefect.events.worker import EventsWorker, emit_events_to_cloud

        if not emit_events_to_cloud():
            EventsWorker.set_client_override(PrefectEventsClient, reconnection_attempts=1)

    @staticmethod
    def _drop_pending() -> None:
        """Empty the queues of Prefect's senders, which would hold up the exit. Best effort: what stays is bounded."""
        if "prefect.events.worker" not in sys.modules:
            return
        from prefect.events.clients import NullEventsClient
        from prefect.events.worker import EventsWorker
        from prefect.logging import handlers

        with contextlib.suppress(Exception):
            handlers.set_api_log_sink(lambda log: None)
            EventsWorker.set_client_override(NullEventsClient)
            for service in list(EventsWorker._instances.values()):  # type: ignore[misc]
                with contextlib.suppress(Exception):
                    while True:
                        service._queue.get_nowait()
                        service._queue.task_done()


LINK = ApiLink()
"""The link of this process."""
