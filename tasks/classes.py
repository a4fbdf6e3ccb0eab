"""The classes of a dataset: K, and what to say of labels that are none of 0..K-1."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.errors import InputError
from tasks.sources.protocol import TEST_LOCATION, TRAIN_LOCATION
from tasks.sources.spec import DataSpec

# Labels that a message lists.
SHOWN = 20


@dataclass(frozen=True)
class Seen:
    """Count, by location, the classes of usable rows, the labels that have none, and the classes of bad rows."""

    classes: dict[str, Counter[int]]
    unknown: dict[str, Counter[str]]
    spoilt: dict[str, Counter[int]]

    @classmethod
    def of(cls, counts: Iterable[tuple[str, Counter[int], Counter[str], Counter[int]]]) -> Seen:
        """Return the sum of (location, classes, unknown labels, classes of bad rows) over shards."""
        locations = (TRAIN_LOCATION, TEST_LOCATION)
        out = cls({at: Counter() for at in locations}, {at: Counter() for at in locations}, {at: Counter() for at in locations})
        for location, classes, unknown, spoilt in counts:
            out.classes[location].update(classes)
            out.unknown[location].update(unknown)
            out.spoilt[location].update(spoilt)
        return out


def _show(labels: Sequence[Any]) -> str:
    more = f" and {len(labels) - SHOWN} more" if len(labels) > SHOWN else ""
    return ", ".join(repr(label) for label in labels[:SHOWN]) + more


def _in_order(labels: Iterable[str]) -> list[str]:
    found = list(labels)
    try:
        return sorted(found, key=int)
    except ValueError:
        return sorted(found)


def _suggestion(labels: Sequence[str]) -> str:
    more = ", ..." if len(labels) > SHOWN else ""
    return "data.label_map: {" + ", ".join(f"{label!r}: {i}" for i, label in enumerate(labels[:SHOWN])) + more + "}"


def label_trouble(spec: DataSpec, seen: Seen, label_map: Mapping[str, int] | None, num_classes: int) -> list[str]:
    """Return what is wrong with the labels of each location as a whole, with what to do about it."""
    out = []
    for location, labels in seen.unknown.items():
        known = label_map or {}
        outside = [text for text in labels if spec.num_classes and (text in known or (not known and text.isdigit()))]
        if outside:
            out.append(
                f"data.{location} has labels {', '.join(_in_order(outside)[:SHOWN])} but num_classes is {num_classes}: labels "
                f"are 0 to {num_classes - 1}; raise num_classes or give data.label_map"
            )
        rest = _in_order(text for text in labels if text not in outside)
        if rest and label_map is not None:
            out.append(
                f"data.{location} has labels that label_map does not name: {_show(rest)} "
                f"({sum(labels[text] for text in rest)} rows); it names {_show(sorted(label_map))}. Add them to data.label_map"
            )
        elif rest:
            whole = [str(label) for label in seen.classes[TRAIN_LOCATION]]
            every = _in_order({*seen.unknown[TRAIN_LOCATION], *whole})
            out.append(
                f"data.{location} has labels that are not 0..K-1: {_show(rest)}; give each label a class, for example "
                f"{_suggestion(every or rest)}"
            )
    strange = sorted(label for label in seen.classes[TEST_LOCATION] if num_classes and label >= num_classes)
    if strange:
        out.append(
            f"data.test has labels {_show(strange)} that data.train has not: there are {num_classes} classes, 0 to "
            f"{num_classes - 1}"
        )
    return out


def refuse_lost(spec: DataSpec, seen: Seen, label_map: Mapping[str, int] | None, table: str) -> None:
    """Raise InputError, with a `table` of causes, where all train rows of a class are bad and K is not given: K would be less."""
    spoilt = seen.spoilt[TRAIN_LOCATION]
    lost = sorted(spoilt.keys() - seen.classes[TRAIN_LOCATION].keys())
    if spec.num_classes is None and lost:
        names = {number: label for label, number in (label_map or {}).items()}
        rows = sum(spoilt[label] for label in lost)
        raise InputError(
            f"data.train has no good row of class {_show([names.get(label, label) for label in lost])}: {rows} rows are labelled "
            f"so, and all are bad; mend them, or set data.num_classes if a class may be missing:{table}"
        )


def count_classes(spec: DataSpec, seen: Seen) -> int:
    """Return K. Raises InputError unless the usable labels of the train location are classes of one dataset."""
    found = sorted(seen.classes[TRAIN_LOCATION])
    if len(found) < 2:
        only = f"holds only the label {found[0]}" if found else "holds no usable label"
        raise InputError(f"data.train {only}; at least 2 classes are needed")
    num_classes = spec.num_classes or found[-1] + 1
    if spec.num_classes is None and len(found) < num_classes:
        texts = [str(label) for label in found]
        raise InputError(
            f"data.train has the labels {_show(found)}, which are not all of 0..{num_classes - 1}; set "
            f"data.num_classes if the others may be missing, or number the labels, for example {_suggestion(texts)}"
        )
    return num_classes
