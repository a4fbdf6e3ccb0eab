"""Threads of the native libraries below NumPy, SciPy and scikit-learn: BLAS and OpenMP."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import cast


def one_native_thread() -> AbstractContextManager[None]:
    """Limit BLAS and OpenMP, of scikit-learn too, to one thread while the block runs, whatever the process has.

    With more of them k-means adds up centres in the order in which threads end, and products are cut in other places:
    last bits would differ from one run, and from one machine, to the next.
    """
    # What is not loaded yet would not be limited.
    import sklearn.cluster
    import sklearn.decomposition  # noqa: F401
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    return cast("AbstractContextManager[None]", threadpool_limits(limits=1))
