"""The subset stage: the right rows with the right weights, whatever dies, and the torch dataset over them."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.errors import CorruptError, InputError
from cluster.record import Seal, Unit
from cluster.storage import Store
from tasks.dataset import Dataset
from tasks.pool import SerialPool
from tasks.schemas import TRAIN
from tasks.selecting import SelectInputs, SelectionUnit, selection_key, selection_stage
from tasks.selection import SelectionSpec
from tasks.selection.stage import load_selection
from tasks.shard import shard_stage
from tasks.sources.spec import DataSpec
from tasks.subset import SubsetDataset, SubsetInputs, subset_key, subset_stage
from tests.tasks.stage_case import DATA, CountingPool, Killed, dying_at, part_bytes

torch.set_num_threads(1)


class Case:
    """Hold a store with an index and two random selections, one of them of very few rows."""

    def __init__(self, folder: Path, data: DataSpec = DATA) -> None:
        self.store = Store(str(folder / "store"))
        self.data = data
        self.index = shard_stage(data, self.store, SerialPool())
        specs = [SelectionSpec(protocol="random", keep=keep) for keep in (0.3, 0.008)]
        units = [(selection_key(spec, 5, self.index.key), SelectionUnit(spec, 5)) for spec in specs]
        self.selections = selection_stage(units, SelectInputs(data, self.index), self.store, SerialPool())
        self.units = [(subset_key(seal.key, self.index.key), seal) for seal in self.selections]
        self.inputs = SubsetInputs(data, self.index)

    def run(self, store: Store | None = None) -> list[Seal]:
        """Run the subset stage for both selections."""
        return subset_stage(self.units, self.inputs, store or self.store, SerialPool())

    def uri(self, number: int = 0) -> str:
        """Return the folder of a subset."""
        return self.store.url(Unit(self.store, "subset", self.units[number][0]).folder)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Return a case whose subsets are made."""
    made = Case(tmp_path_factory.mktemp("subset"))
    made.run()
    return made


def test_the_subset_is_the_selected_rows_of_the_data(case: Case) -> None:
    everything = Dataset(case.data, case.index, case.store).load(TRAIN)
    for number, selection in enumerate(case.selections):
        chosen = load_selection(case.store, selection)
        ids = chosen.column("example_id").to_numpy()
        at = np.searchsorted(everything.example_id, ids)
        subset = SubsetDataset(case.uri(number))
        example_id, x, y, weight = subset.arrays()
        assert np.array_equal(example_id, ids)
        assert np.array_equal(x, everything.x[at])
        assert x.dtype == everything.x.dtype
        assert np.array_equal(y, everything.y[at])
        assert np.array_equal(weight, chosen.column("weight").to_numpy())
        positions = subset.indices()
        assert positions.dtype == np.int64
        assert np.array_equal(positions, np.sort(everything.position[at]))
        assert len(subset) == selection.meta["num_kept"]


def test_items_are_tensors_for_a_loader(case: Case) -> None:
    subset = SubsetDataset(case.uri())
    _, x, y, weight = subset.arrays()
    image, label, its_weight = subset[3]
    assert torch.equal(image, torch.from_numpy(x[3]))
    assert (label, its_weight) == (int(y[3]), float(weight[3]))
    assert tuple(image.shape) == subset.shape
    images, labels, weights = next(iter(torch.utils.data.DataLoader(subset, batch_size=16)))
    assert images.shape == (16, *subset.shape)
    assert torch.equal(labels, torch.from_numpy(y[:16]))
    assert torch.equal(weights.float(), torch.from_numpy(weight[:16]))
    assert subset.num_classes == 10
    copy = pickle.loads(pickle.dumps(subset))
    assert len(pickle.dumps(subset)) < 2000
    assert np.array_equal(copy.arrays()[1], x)


def test_shards_without_rows_have_no_part_and_are_read_once_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(tmp_path, DATA.model_copy(update={"shard_rows": 60}))
    read = []
    real = Dataset.read

    def counting(self: Dataset, shard: object, split: int) -> object:
        read.append(shard)
        return real(self, shard, split)  # type: ignore[arg-type]

    monkeypatch.setattr(Dataset, "read", counting)
    large, small = case.run()
    shards = Dataset(case.data, case.index, case.store).shards()
    assert len(small.parts) - 1 < len(large.parts) - 1 <= len(shards)
    assert len(read) == len(set(read)) == len(large.parts) - 1
    assert sum(part.rows for part in small.parts if part.name.endswith(".parquet")) == small.meta["num_kept"]
    counted = CountingPool()
    assert [seal.parts for seal in subset_stage(case.units, case.inputs, case.store, counted)] == [
        large.parts, small.parts
    ]
    assert counted.items == []


def test_the_same_arrays_for_any_shards(tmp_path: Path, case: Case) -> None:
    other = Case(tmp_path, DATA.model_copy(update={"shard_rows": 37}))
    other.run()
    for mine, its in zip(SubsetDataset(case.uri()).arrays(), SubsetDataset(other.uri()).arrays()):
        assert np.array_equal(mine, its)
    assert np.array_equal(SubsetDataset(case.uri()).indices(), SubsetDataset(other.uri()).indices())


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("create", [1, 3, 4, 5, 8])
def test_death_at_any_write_is_resumed_to_the_same_bytes(
    tmp_path: Path, case: Case, create: int, after: bool
) -> None:
    other = Case(tmp_path)
    total = sum(len(seal.parts) + 1 for seal in case.run())
    assert total >= 8
    with pytest.raises(Killed):
        other.run(dying_at(other.store, create, "subset-", after))
    for seal, truth in zip(other.run(), case.run()):
        assert part_bytes(other.store, seal) == part_bytes(case.store, truth)


def test_a_selection_of_other_data_is_refused(tmp_path: Path, case: Case) -> None:
    other = Case(tmp_path, DATA.model_copy(update={"split_seed": 9}))
    for selection in case.selections:
        for part in selection.parts:
            other.store.create(part.name, case.store.read(part.name))
    foreign = case.selections[0]
    key = subset_key(foreign.key, other.index.key)
    with pytest.raises(InputError, match="made from other data"):
        subset_stage([(key, foreign)], other.inputs, other.store, SerialPool())
    assert Unit(other.store, "subset", key).seal() is None


def test_a_changed_or_unfinished_subset_is_not_read(tmp_path: Path, case: Case) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(case.uri(), copy)
    assert len(SubsetDataset(f"{copy}/").arrays()[0]) == len(SubsetDataset(case.uri()))
    path = next((copy / "parts").glob("*.parquet"))
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CorruptError, match="changed after it was published"):
        SubsetDataset(str(copy)).arrays()
    path.unlink()
    with pytest.raises(CorruptError, match="is gone"):
        SubsetDataset(str(copy))[0]
    (copy / "seal.json").unlink()
    with pytest.raises(InputError, match="not complete"):
        SubsetDataset(str(copy))
    selection = case.store.url(Unit(case.store, "select", case.selections[0].key).folder)
    with pytest.raises(InputError, match="seals a select, not a subset"):
        SubsetDataset(selection)


def test_planning_selections_and_subsets_imports_nothing_heavy() -> None:
    program = (
        "import sys, tasks.selecting, tasks.subset, tasks.standalone\n"
        "from tasks.selection import SelectionSpec\n"
        "spec = SelectionSpec(score='el2n', keep=0.1, alpha=0.5)\n"
        "tasks.subset.subset_key(tasks.selecting.selection_key(spec, 0, 'a'), 'b')\n"
        "print([name for name in ('torch', 'pyarrow', 'numpy', 'ray', 'prefect', 'scipy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
