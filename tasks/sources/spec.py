"""What the data are: where they lie, how they are read, and how they are split."""

from __future__ import annotations

from typing import Any

from pydantic import field_validator, model_validator

from tasks.spec import Resources, Spec, Use, setting

DEFAULT_TEST_FRACTION = 0.2
MAX_CLASSES = 1_000_000


class DataSpec(Spec):
    """Describe a labelled dataset of K classes. Where it lies is not part of its identity: its contents are."""

    source: Use = setting(
        ...,
        identity=True,
        doc="parquet, numpy, idx, images, sklearn, mnist1d or package.module:callable; args are reading options.",
    )
    train: str = setting(..., identity=False, min_length=1, doc="File, folder, URI or name of a bundled set.")
    test: str | None = setting(
        None,
        identity=False,
        min_length=1,
        doc="The same kind of location for test rows; null splits test_fraction off the train location.",
    )
    test_fraction: float | None = setting(
        None,
        identity=True,
        gt=0,
        lt=1,
        doc=f"Share of the train location that is test where `test` is null; null means {DEFAULT_TEST_FRACTION},"
        " or an IDX folder's own t10k pair.",
    )
    validation: float = setting(
        0.1, identity=True, gt=0, lt=1, doc="Share of the rows outside test that is validation, by keyed hash of the "
                                            "id."
    )
    split_seed: int = setting(0, identity=True, doc="Seed of the hashes that split and limit.")
    limit: int | None = setting(
        None, identity=True, ge=1, doc="Use only this many rows of the train location: those of smallest keyed hash."
    )
    label_map: dict[str, int] | None = setting(
        None, identity=True, doc="Class 0..K-1 of each label as text, for labels that are not 0..K-1."
    )
    num_classes: int | None = setting(
        None, identity=True, ge=2, le=MAX_CLASSES, doc="K; null means 1 + the largest label, and then each of 0..K-1 must occur."
    )
    shard_rows: int = setting(65536, identity=True, ge=1, doc="Rows a shard has at most.")
    max_bad_fraction: float = setting(
        0.001, identity=False, ge=0, lt=1, doc="Share of all rows that may be bad and go to the quarantine; more is an error."
    )
    resources: Resources = setting(Resources(), identity=False, doc="How the shard stage is run.")

    @field_validator("source", mode="before")
    @classmethod
    def _source_by_name(cls, value: Any) -> Any:
        return {"use": value} if isinstance(value, str) else value

    @field_validator("label_map", mode="before")
    @classmethod
    def _labels_as_text(cls, value: Any) -> Any:
        # YAML reads `3: 0` with an integer key; labels are compared as text.
        if not isinstance(value, dict):
            return value
        texts = {str(label): number for label, number in value.items()}
        if len(texts) < len(value):
            raise ValueError("two keys of label_map are the same text; write each label once")
        return texts

    @field_validator("label_map")
    @classmethod
    def _classes_from_zero(cls, value: dict[str, int] | None) -> dict[str, int] | None:
        if value is None:
            return None
        classes = set(value.values())
        if not classes or min(classes) < 0:
            raise ValueError("label_map must give every label a class of 0 or more")
        if max(classes) >= MAX_CLASSES:
            raise ValueError(f"label_map gives a label the class {max(classes)}; there are at most {MAX_CLASSES} classes")
        return value

    @model_validator(mode="after")
    def _one_test(self) -> DataSpec:
        if self.test is not None and self.test_fraction is not None:
            raise ValueError("test_fraction is given beside test: take one, the test rows come from one place")
        return self
