"""The shard stage: check every row of the data, split the rows, and publish the index of ids, splits and labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cluster.fingerprint import stage_key
from cluster.record import Seal, Unit

if TYPE_CHECKING:
    from cluster.storage import Store
    from tasks.pool import Pool
    from tasks.sources.spec import DataSpec

STAGE = "shard"
VERSION = 1


def shard_key(spec: DataSpec, digest: str, code: str = "") -> str:
    """Return the key of the index. `digest` is data_digest(spec), `code` the digest of a source of the user's own."""
    return stage_key(STAGE, VERSION, spec.identity(), (), {"data": digest, "code": code})


def shard_stage(
    spec: DataSpec, store: Store, pool: Pool, code: str = "", accept: Callable[[dict[str, Any]], None] | None = None
) -> Seal:
    """Return the seal of the index, computing what is not there.

    `accept(meta)` may refuse what was found (a model that does not fit, say) by raising, before anything is written.

    Every row is read and checked before anything is written: wrong data are an InputError that leaves no trace.
    Parts are schemas.INDEX tables, one a shard, named `shard.part_name`. The seal's meta: num_classes, class_names,
    label_map (or null), shape, dtype ("uint8" or "float32"), num_train, num_validation, num_test, num_unused, num_rows,
    limit (or null), shards [{digest, location, relative, start, rows, position}].
    """
    from tasks.sources.digest import sources_digest
    from tasks.sources.registry import open_sources

    sources = open_sources(spec)
    unit = Unit(store, STAGE, shard_key(spec, sources_digest(sources), code))
    seal = unit.seal()
    if seal is not None:
        return seal
    from tasks.sharding import make_index

    return make_index(spec, sources, unit, pool, accept)
