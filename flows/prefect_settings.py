"""What Prefect is told before it is imported: where its API is, how long to wait for it, and to leave the terminal."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml

from cluster import redaction
from flows.api_link import LINK

is_secret = redaction.is_secret
redact = redaction.scrub

# Prefect's own default is five retries with exponential backoff: 62 s for each call to an API that is gone. One is 2 s.
MAX_RETRIES = 1
REQUEST_TIMEOUT_S = 10.0

def configured_api_url() -> str | None:
    """Return the Prefect API the user named: PREFECT_API_URL, or that of the active Prefect profile, or None."""
    if url := os.environ.get("PREFECT_API_URL"):
        return url
    home = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
    path = Path(os.environ.get("PREFECT_PROFILES_PATH", str(home / "profiles.toml"))).expanduser()
    try:
        profiles = tomllib.loads(path.read_text())
        active = os.environ.get("PREFECT_PROFILE") or profiles.get("active", "")
        url = profiles.get("profiles", {}).get(active, {}).get("PREFECT_API_URL")
    except (OSError, tomllib.TOMLDecodeError, AttributeError):
        return None
    return str(url) if url else None


def _logging_config(log: Path) -> bytes:
    """Return a Prefect logging configuration that writes to `log` and to the API, and never to the terminal."""
    # Prefect puts settings in for $NAME.
    file_name = str(log).replace("$", "$$")
    both = {"level": "NOTSET", "handlers": ["api"]}
    config = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
        "handlers": {
            "file": {"class": "logging.FileHandler", "filename": file_name, "formatter": "line", "delay": True},
            "api": {"class": "prefect.logging.handlers.APILogHandler"},
        },
        "loggers": {
            "prefect": {"level": "INFO", "handlers": ["file"], "propagate": False},
            "prefect.extra": {"level": "INFO", "handlers": ["api"], "propagate": False},
            "prefect.flow_runs": both,
            "prefect.task_runs": both,
            # Websocket and HTTP libraries complain on their own behalf when a server goes away.
            "websockets": {"level": "WARNING", "handlers": ["file"], "propagate": False},
            "httpx": {"level": "WARNING", "handlers": ["file"], "propagate": False},
            "EventsWorker": {"level": "WARNING", "handlers": ["file"], "propagate": False},
            "APILogWorker": {"level": "WARNING", "handlers": ["file"], "propagate": False},
        },
    }
    return yaml.safe_dump(config, sort_keys=False).encode()


def client_environment(scratch: Path, url: str, *, own: bool = False, auth: str | None = None) -> dict[str, str]:
    """Return the environment variables with which this process is to use Prefect.

    For a server of our own (`own`) that includes its `PREFECT_HOME` and password; for the user's, their home, profile
    and every variable they set themselves stay as they are. Writes the logging configuration into `scratch`.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    config = scratch / "prefect-logging.yaml"
    config.write_bytes(_logging_config(scratch / "prefect.log"))
    wanted = {
        "PREFECT_CLIENT_MAX_RETRIES": str(MAX_RETRIES),
        "PREFECT_API_REQUEST_TIMEOUT": str(REQUEST_TIMEOUT_S),
        "PREFECT_LOGGING_SETTINGS_PATH": str(config),
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    chosen = {name: value for name, value in wanted.items() if own or name not in os.environ}
    chosen["PREFECT_API_URL"] = url
    # A server that Prefect itself would start in the background is one we could not stop.
    chosen["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] = "false"
    if own:
        chosen["PREFECT_HOME"] = str(scratch)
        chosen["PREFECT_CLIENT_CSRF_SUPPORT_ENABLED"] = "false"
        # Nobody reads the logs of a server that ends with the run; they are in the file.
        chosen["PREFECT_LOGGING_TO_API_ENABLED"] = "false"
        if auth is not None:
            chosen["PREFECT_API_AUTH_STRING"] = auth
    return chosen


@contextlib.contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables inside the block, for Prefect's settings too if it has been imported already."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    raise_exceptions = logging.raiseExceptions
    # Prefect's API log handler writes its own failures to the terminal unless this is off.
    logging.raiseExceptions = False
    try:
        with contextlib.ExitStack() as stack:
            if "prefect.settings" in sys.modules:
                from prefect.settings import temporary_settings

                names = {name: value for name, value in variables.items() if name.startswith("PREFECT_")}
                stack.enter_context(temporary_settings(names))
            yield
    finally:
        # Once the API is lost, Prefect's sender may still have something to complain about until the interpreter ends.
        if LINK.lost is None:
            logging.raiseExceptions = raise_exceptions
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
