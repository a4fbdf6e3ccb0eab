"""From the name of a source to the source: built-in, or the user's by import path."""

from __future__ import annotations

from cluster.errors import InputError
from tasks.imports import resolve
from tasks.sources.protocol import TEST_LOCATION, TRAIN_LOCATION, Source
from tasks.sources.spec import DEFAULT_TEST_FRACTION, DataSpec

BUILTIN_SOURCES = {
    "parquet": "tasks.sources.parquet:ParquetSource",
    "numpy": "tasks.sources.numpy_files:NumpySource",
    "idx": "tasks.sources.idx:IdxSource",
    "images": "tasks.sources.images:ImageSource",
    "sklearn": "tasks.sources.bundled:BundledSource",
    "mnist1d": "tasks.sources.mnist1d:Mnist1dSource",
}


def test_location(spec: DataSpec) -> str | None:
    """Return where test rows lie, or None where they are split off the train location.

    An IDX folder that holds a t10k pair is its own test location, and mnist1d makes test rows of its own, unless `test` or
    `test_fraction` says otherwise.
    """
    if spec.test is None and spec.test_fraction is None and spec.source.use == "idx":
        from tasks.sources.idx import has_test_pair

        return spec.train if has_test_pair(spec.train) else None
    if spec.test is None and spec.test_fraction is None and spec.source.use == "mnist1d":
        return spec.train
    return spec.test


def test_share(spec: DataSpec) -> float:
    """Return the share of the train location that is test: 0 where test rows have a location of their own."""
    if test_location(spec) is not None:
        return 0.0
    return DEFAULT_TEST_FRACTION if spec.test_fraction is None else spec.test_fraction


def open_source(spec: DataSpec, location: str) -> Source:
    """Return the source of the location "train" or "test". Reads nothing yet. Raises InputError."""
    uri = spec.train if location == TRAIN_LOCATION else test_location(spec)
    if uri is None:
        raise InputError("data.test is not given: test rows are split off the train location")
    make = resolve(spec.source, BUILTIN_SOURCES, "source")
    taken = sorted({"uri", "location"}.intersection(spec.source.args))
    if taken:
        raise InputError(f"source argument {taken[0]!r} is set by Secateur; give locations as data.train and data.test")
    try:
        source = make(uri, location, **spec.source.args)
    except TypeError as error:
        raise InputError(f"source {spec.source.use!r} cannot be made with {spec.source.args} ({error})") from error
    if not isinstance(source, Source):
        missing = [name for name in ("files", "shards", "read", "read_labels") if not hasattr(source, name)]
        raise InputError(
            f"source {spec.source.use!r} made a {type(source).__name__} without {', '.join(missing)}; "
            "see tasks.sources.protocol.Source for what a source must do"
        )
    return source


def open_sources(spec: DataSpec) -> dict[str, Source]:
    """Return the sources by location: "train", and "test" where test rows have a location of their own."""
    sources = {TRAIN_LOCATION: open_source(spec, TRAIN_LOCATION)}
    if test_location(spec) is not None:
        sources[TEST_LOCATION] = open_source(spec, TEST_LOCATION)
    return sources
