"""Put a report into the store and read it back: runs/<run>/report/{results.json, index.html, ..., seal.json}."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from cluster.errors import CorruptError
from cluster.fingerprint import canonical_json, sha256
from cluster.storage import Store
from tasks.report.inputs import PageInputs
from tasks.report.page import render_page
from tasks.report.results import results_bytes

FILES = ("results.json", "index.html", "results.parquet", "curves.svg")
"""The files of a report; the first two are in every one."""


def report_name(run_name: str, name: str) -> str:
    """Return the store name of a report's file."""
    return f"runs/{run_name}/report/{name}"


def write_report(
    store: Store, run_name: str, results: dict[str, Any], page: PageInputs | None = None,
    beside: Mapping[str, bytes] | None = None,
) -> str:
    """Put results.json, index.html and the files `beside`, then seal.json with the sha256 of each; return the page's address.

    A report is a view, so it replaces the one before. A reader that meets two attempts half mixed sees it by the seal.
    """
    files = {"results.json": results_bytes(results), "index.html": render_page(results, page).encode(), **(beside or {})}
    for name, data in files.items():
        store.replace(report_name(run_name, name), data)
    seal = {"run": run_name, "sha256": {name: sha256(data) for name, data in files.items()}}
    store.replace(report_name(run_name, "seal.json"), canonical_json(seal, "report seal"))
    return store.url(report_name(run_name, "index.html"))


def read_results(store: Store, run_name: str) -> dict[str, Any] | None:
    """Return results.json of a complete report, None where there is none. Raises CorruptError against its seal."""
    again = f"write it again with `secateur report {run_name} --store {shlex.quote(store.uri)}`"
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
