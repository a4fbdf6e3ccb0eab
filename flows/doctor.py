"""Examine this machine: versions, the store and what it guarantees, Ray, Prefect."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from cluster.errors import StoreError
from cluster.storage import Store
from flows.cli import print_json
from flows.output import say
from flows.prefect_settings import redact
from flows.runs import versions


def examine(store_uri: str, ray: str, as_json: bool) -> bool:
    """Print what works and what does not, and return whether all of it does."""
    checks: list[tuple[str, Callable[[], str]]] = [
        ("versions", lambda: ", ".join(f"{name} {number}" for name, number in versions().items())),
        ("store", lambda: _store(store_uri)),
        ("create-only writes", lambda: _create_only(store_uri)),
        ("ray", lambda: _ray(ray)),
        ("prefect", _prefect),
    ]
    rows = []
    for name, check in checks:
        try:
            rows.append({"check": name, "ok": True, "found": check()})
        except Exception as error:
            rows.append({"check": name, "ok": False, "found": redact(f"{type(error).__name__}: {error}")})
    if as_json:
        print_json(rows)
    else:
        for row in rows:
            say(f"{'ok  ' if row['ok'] else 'FAIL'}  {row['check']:<20}{row['found']}")
    return all(row["ok"] for row in rows)


def _store(uri: str) -> str:
    store = Store(uri)
    store.check_writable()
    return f"{store.uri} can be written"


def _create_only(uri: str) -> str:
    """Say what a second create does, single and as a multipart upload. Raises StoreError where the first is not refused."""
    found = Store(uri).check_writable(thorough=True)
    if found.warning:
        raise StoreError(str(found))
    return str(found)


def _ray(address: str) -> str:
    if address == "local":
        return f"would start here with {os.cpu_count()} CPUs"
    from cluster.capacity import describe
    from cluster.session import RaySession, probe

    if address != "auto":
        # A process that has a Ray session already would answer for itself.
        probe(address)
    with RaySession(address):
        return f"{address} has {describe()}"


def _prefect() -> str:
    from flows.prefect_settings import configured_api_url
    from flows.server import prefect_api

    url = configured_api_url()
    if url is None:
        return "no PREFECT_API_URL: a run starts and stops its own server"
    with tempfile.TemporaryDirectory(prefix="secateur-doctor-") as folder, prefect_api(Path(folder)):
        return f"{redact(url)} answers"
