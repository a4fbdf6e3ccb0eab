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
VERSION = 4


def shard_key(spec: DataSpec, digest: str, code: str = "") -> str:
    """Return the key of the index. `digest` is data_digest(spec), `code` the digest of a source of the user's own."""
    return stage_key(STAGE, VERSION, spec.identity(), (), {"data": digest, "code": code})


def shard_stage(
    spec: DataSpec, store: Store, pool: Pool, code: str = "", accept: Callable[[dict[str, Any]], None] | None = None
) -> Seal:
    """Return the seal of the index, computing what is not there.

    `accept(meta)` may refuse what was found (a model that does not fit, say) by raising, before anything is written.

    Every row is read and checked before anything is written: wrong data are an InputError that leaves no trace, and so
    are more bad rows than `spec.max_bad_fraction`. Fewer go to the quarantine, each with its cause.
    Parts are schemas.INDEX tables, one a shard, named `shard.part_name`, with every row of it. The seal's meta:
    num_classes, class_names, label_map (or null), shape, dtype ("uint8" or "float32"), num_train, num_validation,
    num_test, num_unused, num_quarantined, num_rows, limit (or null), shards [{digest, location, relative, start, rows,
    position}], quarantine {rows, causes, parts}.
    """
    from tasks.sources.digest import sources_digest
    from tasks.sources.registry import open_sources

    sources = open_sources(spec)
    digest = sources_digest(sources)
    unit = Unit(store, STAGE, shard_key(spec, digest, code))
    seal = unit.seal()
    if seal is not None:
        check_budget(spec, seal, store)
        return seal
    from tasks.sharding import make_index

    return make_index(spec, sources, unit, pool, digest, accept)


def check_budget(spec: DataSpec, seal: Seal, store: Store) -> None:
    """Raise InputError where the finished index left out more rows than this configuration allows."""
    from tasks.quarantine import allowed_rows, left_out, read_examples, tables_of

    fact, rows = left_out(seal), int(seal.meta["num_rows"])
    if fact["rows"] > allowed_rows(spec.max_bad_fraction, rows):
        from tasks.checking import refuse_bad

        refuse_bad(spec, fact["causes"], rows, read_examples(store, tables_of(fact)))
