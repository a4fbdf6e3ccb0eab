"""How an index's seal lists its shards: by runs of one file, in some 70 bytes a shard where a mapping each takes 600."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tasks.sources.protocol import Shard

DIGEST_CHARS = 64


def pack_shards(shards: Iterable[Shard]) -> list[dict[str, Any]]:
    """Return runs {location, relative, start, position, rows, digests}: shards that follow one another in one file.

    `rows` holds [rows of a shard, how many shards have them]; `digests` their digests of 64 characters, one after another.
    """
    runs: list[dict[str, Any]] = []
    digests: list[list[str]] = []
    end: tuple[str, str, int, int] | None = None
    for shard in shards:
        if (shard.location, shard.relative, shard.start, shard.position) != end:
            runs.append({
                "location": shard.location, "relative": shard.relative, "start": shard.start, "position": shard.position,
                "rows": [],
            })  # fmt: skip
            digests.append([])
        counts = runs[-1]["rows"]
        if counts and counts[-1][0] == shard.rows:
            counts[-1][1] += 1
        else:
            counts.append([shard.rows, 1])
        digests[-1].append(shard.digest)
        end = shard.location, shard.relative, shard.start + shard.rows, shard.position + shard.rows
    return [{**run, "digests": "".join(each)} for run, each in zip(runs, digests)]


def unpack_shards(runs: Iterable[Mapping[str, Any]]) -> Iterator[Shard]:
    """Yield the shards that `pack_shards` was given, without address and files."""
    for run in runs:
        start, position, at = run["start"], run["position"], 0
        for rows, count in run["rows"]:
            for _ in range(count):
                digest = run["digests"][at : at + DIGEST_CHARS]
                yield Shard(run["location"], run["relative"], "", start, rows, position, digest)
                start, position, at = start + rows, position + rows, at + DIGEST_CHARS
