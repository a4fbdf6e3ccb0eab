"""The schema of every table that a stage publishes."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

TRAIN, VALIDATION, TEST, UNUSED, QUARANTINED = 0, 1, 2, 3, 4
"""Values of `split`. UNUSED rows lie outside `data.limit`, QUARANTINED ones are bad and in the quarantine table."""

INDEX = pa.schema(
    [
        pa.field("example_id", pa.int64(), nullable=False),
        # Ordinal of the row in the train (or the test) location, counted over its shards in order.
        pa.field("position", pa.int64(), nullable=False),
        pa.field("split", pa.int8(), nullable=False),
        # 0..K-1 after label_map; -1 for test rows, whose labels only evaluation reads, and for quarantined ones.
        pa.field("label", pa.int64(), nullable=False),
    ]
)

QUARANTINE = pa.schema(
    [
        pa.field("example_id", pa.int64(), nullable=False),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("error_class", pa.string(), nullable=False),
        pa.field("message", pa.string(), nullable=False),
    ]
)

SELECTION = pa.schema(
    [
        pa.field("example_id", pa.int64(), nullable=False),
        pa.field("arm", pa.dictionary(pa.int8(), pa.string()), nullable=False),
        pa.field("inclusion_prob", pa.float64(), nullable=False),
        pa.field("weight", pa.float32(), nullable=False),
    ]
)

DYNAMICS = pa.schema(
    [
        pa.field("example_id", pa.int64(), nullable=False),
        pa.field("presentations", pa.int32(), nullable=False),
        pa.field("forgetting_events", pa.int32(), nullable=False),
        pa.field("never_learned", pa.bool_(), nullable=False),
        pa.field("forgetting", pa.float32(), nullable=False),
        pa.field("aum", pa.float32(), nullable=False),
    ]
)

CORRECTNESS = pa.schema(
    [
        pa.field("example_id", pa.int64(), nullable=False),
        pa.field("label", pa.int64(), nullable=False),
        pa.field("predicted", pa.int64(), nullable=False),
    ]
)


def scores_schema(columns: list[str]) -> pa.Schema:
    """Return the schema of a score part: example_id, then one float32 column a name."""
    fields = [pa.field("example_id", pa.int64(), nullable=False)]
    return pa.schema(fields + [pa.field(name, pa.float32(), nullable=False) for name in columns])


def score_table_schema(columns: list[str]) -> pa.Schema:
    """Return the schema of the merged score table: example_id, label, then one float32 column a name."""
    fields = [pa.field("example_id", pa.int64(), nullable=False), pa.field("label", pa.int64(), nullable=False)]
    return pa.schema(fields + [pa.field(name, pa.float32(), nullable=False) for name in columns])


def results_schema(parameters: Mapping[str, pa.DataType]) -> pa.Schema:
    """Return the schema of results.parquet: a row for each arm, keep and replicate, with a column a parameter of arms.

    Accuracies are percentages of the last step. Null: what an arm has not, as the full data has no score.
    """
    return pa.schema(
        [
            pa.field("run", pa.string(), nullable=False),
            pa.field("arm", pa.string(), nullable=False),
            pa.field("score", pa.string()),
            pa.field("protocol", pa.string(), nullable=False),
            pa.field("direction", pa.string()),
            pa.field("missing", pa.string()),
            pa.field("keep", pa.float64(), nullable=False),
            # The share of signal as it applied: 0 for random, 1 for topk.
            pa.field("alpha", pa.float64()),
            *(pa.field(name, kind) for name, kind in parameters.items()),
            pa.field("replicate", pa.int32(), nullable=False),
            pa.field("selection_seed", pa.int64()),
            pa.field("train_seed", pa.int64(), nullable=False),
            # Of the population that was selected from.
            pa.field("n", pa.int64(), nullable=False),
            pa.field("n_kept", pa.int64(), nullable=False),
            pa.field("n_signal", pa.int64()),
            pa.field("ess", pa.float64()),
            pa.field("design_effect", pa.float64()),
            pa.field("steps", pa.int64(), nullable=False),
            pa.field("batch_size", pa.int64(), nullable=False),
            pa.field("epochs", pa.float64(), nullable=False),
            pa.field("examples_touched", pa.int64(), nullable=False),
            # Of all proxies together, which the arms that rank by their scores share; null for scores brought.
            pa.field("scoring_steps", pa.int64()),
            pa.field("accuracy", pa.float64(), nullable=False),
            pa.field("validation_accuracy", pa.float64()),
            # Over the classes that have test examples.
            pa.field("worst_class_accuracy", pa.float64(), nullable=False),
            pa.field("selection_key", pa.string()),
            pa.field("train_key", pa.string(), nullable=False),
        ]
    )


def subset_schema(shape: tuple[int, ...], dtype: pa.DataType) -> pa.Schema:
    """Return the schema of a compact subset shard; features are flattened rows of `shape`, kept in the metadata."""
    width = 1
    for size in shape:
        width *= size
    return pa.schema(
        [
            pa.field("example_id", pa.int64(), nullable=False),
            pa.field("position", pa.int64(), nullable=False),
            pa.field("features", pa.list_(dtype, width), nullable=False),
            pa.field("label", pa.int64(), nullable=False),
            pa.field("weight", pa.float32(), nullable=False),
        ]
    )
