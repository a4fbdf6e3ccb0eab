"""Examine this machine: versions, the store and its create-only writes, Ray, Prefect."""

from __future__ import annotations

import uuid
from collections.abc import Callable

from cluster.storage import Store
from flows.cli import print_json
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
            rows.append({"check": name, "ok": False, "found": f"{type(error).__name__}: {error}"})
    if as_json:
        print_json(rows)
    else:
        for row in rows:
            print(f"{'ok  ' if row['ok'] else 'FAIL'}  {row['check']:<20}{row['found']}")
    return all(row["ok"] for row in rows)


def _store(uri: str) -> str:
    store = Store(uri)
    store.check_writable()
    return f"{store.uri} can be written"


def _create_only(uri: str) -> str:
    """Write one name twice: the second write must be refused and the first bytes must stand."""
    store = Store(uri)
    name = f"tmp/doctor-{uuid.uuid4().hex}"
    try:
        first, second = store.create(name, b"first"), store.create(name, b"second")
        stands = store.read(name)
    finally:
        store.remove(name)
    if not first or second or stands != b"first":
        raise RuntimeError(
            "a second create of one name was not refused: two runs on this store could overwrite each other's parts; "
            "use a store with conditional PUT (If-None-Match), or never run two at once"
        )
    return "a second create of one name is refused"


def _ray(address: str) -> str:
    if address == "local":
        import os

        return f"would start here with {os.cpu_count()} CPUs"
    from cluster.session import probe

    if address == "auto":
        return "the running cluster is looked up when a run starts"
    probe(address)
    return f"{address} answers"


def _prefect() -> str:
    from flows.prefect_settings import configured_api_url

    url = configured_api_url()
    return "PREFECT_API_URL names a server" if url else "no PREFECT_API_URL: a run starts and stops its own server"
