"""The merge stage: one verified score table, row for row the train split of the index."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cluster.errors import InputError
from cluster.fingerprint import stage_key
from tasks.spec import Resources

if TYPE_CHECKING:
    from cluster.record import Seal
    from cluster.storage import Store
    from tasks.pool import Pool
    from tasks.sources.spec import DataSpec

VERSION = 2


def merge_key(source_key: str, index_key: str) -> str:
    """Return the key of a score table: `source_key` is a score key, or `own_scores_key` of the user's own scores."""
    return stage_key("merge", VERSION, {}, [source_key, index_key])


def own_scores_key(digest: str, id_column: str = "example_id") -> str:
    """Return the source key of the user's own scores, of which `digest` is `scores_digest`."""
    return stage_key("own-scores", VERSION, {"id_column": id_column}, digests={"data": digest})


def scores_digest(uri: str) -> str:
    """Return the digest of the user's own scores: a Parquet file, or all those in a folder, local or s3://.

    By content on the file system, by ETag and size on S3. Raises InputError when there are none.
    """
    from tasks.own_scores import digest_of

    return digest_of(uri)


@dataclass(frozen=True)
class MergeInputs:
    """Hold what the merge stage reads: a sealed score stage, or the user's own scores by URI; exactly one of them."""

    data: DataSpec
    index: Seal
    score: Seal | None = None
    scores_uri: str | None = None
    scores_digest: str | None = None
    id_column: str = "example_id"
    resources: Resources = field(default_factory=Resources)

    def source_key(self) -> str:
        """Return the key of what is merged. Raises InputError unless exactly one source is given."""
        if (self.score is None) == (self.scores_uri is None):
            raise InputError("merge takes a sealed score stage or the URI of your own scores: give exactly one")
        if self.score is not None:
            return self.score.key
        assert self.scores_uri is not None
        return own_scores_key(self.scores_digest or scores_digest(self.scores_uri), self.id_column)


def merge_stage(inputs: MergeInputs, store: Store, pool: Pool) -> Seal:
    """Publish the score table and return its seal; every train row has one score row, or is in the score's quarantine.

    Parts follow the shards (example_id, label, one float32 column a score). `seal.meta` holds columns, directions,
    num_rows, quarantine (as the score stage's), histograms, sortable (sparse counts of the top 16 bits of
    `sortable_bits`), rank_correlations between seeds, and the source's own metadata. Raises InputError with counts for
    missing, extra or duplicate ids and for values that are not finite float32 numbers.
    """
    from tasks.merge_worker import run_merge_stage

    return run_merge_stage(inputs, store, pool)
