"""Put a report into the store and read it back: runs/<run>/report/{results.json, index.html, ..., seal.json}."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping
from random import SystemRandom
from typing import Any

from cluster.errors import CorruptError, StoreError
from cluster.fingerprint import canonical_json, sha256
from cluster.storage import Store
from tasks.report.inputs import PageInputs
from tasks.report.results import results_bytes

FILES = ("results.json", "index.html", "results.parquet", "curves.svg")
"""The files of a report; the first two are in every one."""

ROUNDS = 8

# The pause doubles with every round, up to 12.8 s: another writer of five small objects is done long before.
PAUSE_S = 0.1


def report_name(run_name: str, name: str) -> str:
    """Return the store name of a report's file."""
    return f"runs/{run_name}/report/{name}"


def write_report(
    store: Store, run_name: str, results: dict[str, Any], page: PageInputs | None = None,
    beside: Mapping[str, bytes] | None = None,
) -> str:
    """Put results.json, index.html and the files `beside`, then seal.json with the sha256 of each; return the page's address.

    A report is a view, so it replaces the one before. Of several writers at once, whose files mix, each reads back what
    stands after its own seal, and writes anew until files and seal agree. Whoever writes last of all reads back when
    nothing changes any more: what they leave agrees, whosever it is. Raises StoreError where 8 rounds end in a mixture.
    """
    # The page and its charts take 45 ms to import, and `plan` and `status` only read what a report has left.
    from tasks.report.page import render_page

    files = {"results.json": results_bytes(results), "index.html": render_page(results, page).encode(), **(beside or {})}
    seal = {"run": run_name, "sha256": {name: sha256(data) for name, data in files.items()}}
    for number in range(ROUNDS):
        for name, data in files.items():
            store.replace(report_name(run_name, name), data)
        store.replace(report_name(run_name, "seal.json"), canonical_json(seal, "report seal"))
        if _agrees(store, run_name):
            return store.url(report_name(run_name, "index.html"))
        # Writers in step would disturb each other for ever; forked ones share the state of `random`.
        time.sleep(SystemRandom().uniform(0, PAUSE_S * 2**number))
        if _agrees(store, run_name):
            return store.url(report_name(run_name, "index.html"))
    raise StoreError(
        f"{store.url(report_name(run_name, 'seal.json'))} and the files it names do not agree after {ROUNDS} rounds of writing: "
        f"something else writes there; {_again(store, run_name)}"
    )


def sealed_digests(sealed: bytes) -> dict[str, str]:
    """Return the sha256 of each file that a report's seal lists. Raises ValueError, LookupError or TypeError."""
    digests = json.loads(sealed)["sha256"]
    return {name: str(digests[name]) for name in FILES if name in FILES[:2] or name in digests}


def _agrees(store: Store, run_name: str) -> bool:
    """Return whether the report that stands is whole, whoever wrote it."""
    try:
        wanted = sealed_digests(store.read(report_name(run_name, "seal.json")))
        return all(sha256(store.read(report_name(run_name, name))) == digest for name, digest in wanted.items())
    except (FileNotFoundError, ValueError, LookupError, TypeError, RecursionError):
        return False


def _again(store: Store, run_name: str) -> str:
    return f"write it again with `secateur report {run_name} --store {shlex.quote(store.uri)}`"


def read_results(store: Store, run_name: str) -> dict[str, Any] | None:
    """Return results.json of a complete report, None where there is none. Raises CorruptError against its seal."""
    again = _again(store, run_name)
    try:
        sealed = store.read(report_name(run_name, "seal.json"))
        data = store.read(report_name(run_name, "results.json"))
    except FileNotFoundError:
        return None
    try:
        wanted = json.loads(sealed)["sha256"]["results.json"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise CorruptError(f"{store.url(report_name(run_name, 'seal.json'))} cannot be read; {again}") from error
    if wanted != sha256(data):
        raise CorruptError(f"{store.url(report_name(run_name, 'results.json'))} is not what its seal says; {again}")
    return dict(json.loads(data))
