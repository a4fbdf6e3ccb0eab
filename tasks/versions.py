"""Versions of packages, as keys hold them."""

from __future__ import annotations

from functools import cache


@cache
def minor_version(package: str) -> str:
    """Return the first two numbers of an installed package's version: what a stage's key holds of it.

    Read once a process: the metadata of a package take 3 ms to parse, and a plan asks for one with each training.
    """
    from importlib.metadata import version

    return ".".join(version(package).split(".")[:2])
