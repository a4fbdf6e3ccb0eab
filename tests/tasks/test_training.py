"""The training loop: orders, weights, resuming bit for bit, side effects, several ranks."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.errors import InputError, StageError
from tasks.budget import examples_touched, steps_of
from tasks.dynamics import DynamicsRecorder
from tasks.ordering import BatchOrder, rank_slice
from tasks.spec import Numerics, Recipe, Use
from tasks.training import State, TrainingArrays, own_state, train_model
from tests.tasks.stage_case import Killed
from tests.tasks.training_case import (
    CNN,
    FLIP,
    MLP,
    RESNET,
    arrays,
    free_port,
    global_numpy,
    model_of,
    pipeline_of,
    same_state,
    settings,
    spawn,
)


def test_an_epoch_shows_every_example_once_and_keeps_its_short_last_batch() -> None:
    ids = arrays(50).example_id
    order = BatchOrder(ids, 16, seed=3)
    sizes = [len(order.batch(step)) for step in range(8)]
    assert sizes == [16, 16, 16, 2, 16, 16, 16, 2]
    first = np.concatenate([order.batch(step) for step in range(4)])
    second = np.concatenate([order.batch(step) for step in range(4, 8)])
    assert sorted(first) == sorted(second) == list(range(50))
    assert not np.array_equal(first, second)


def test_a_batch_is_a_function_of_seed_and_step_not_of_history_or_storage() -> None:
    ids = arrays(50).example_id
    backwards = BatchOrder(ids, 16, seed=3)
    wanted = [BatchOrder(ids, 16, seed=3).batch(step) for step in range(12)]
    for step in reversed(range(12)):
        assert np.array_equal(backwards.batch(step), wanted[step])
    mixed = np.random.default_rng(0).permutation(50)
    elsewhere = BatchOrder(ids[mixed], 16, seed=3)
    assert all(np.array_equal(ids[mixed][elsewhere.batch(step)], ids[wanted[step]]) for step in range(12))
    assert not np.array_equal(BatchOrder(ids, 16, seed=4).batch(0), wanted[0])


def test_drawn_batches_follow_the_weights() -> None:
    ids = np.arange(4000, dtype=np.int64)
    weights = np.where(ids % 4 == 0, 3.0, 1.0)
    weights[ids % 4 == 1] = 0
    order = BatchOrder(ids, 4000, seed=1, weights=weights)
    counts = np.zeros(4)
    for step in range(5):
        counts += np.bincount(order.batch(step) % 4, minlength=4)
    assert counts[1] == 0
    # 20,000 draws: sd of a share of 0.6 is 0.0035.
    assert np.allclose(counts / counts.sum(), [0.6, 0, 0.2, 0.2], atol=0.015)
    seen = {int(row) for step in range(5) for row in order.batch(step)}
    assert order.touched(5) == len(seen)


def test_touched_counts_distinct_examples() -> None:
    order = BatchOrder(arrays(50).example_id, 16, seed=3)
    for steps in range(1, 7):
        distinct = len(set(np.concatenate([order.batch(step) for step in range(steps)])))
        assert order.touched(steps) == examples_touched(steps, 16, 50) == distinct


@pytest.mark.parametrize(
    ("epochs", "n", "batch", "want"),
    [(1, 50, 16, 4), (2, 50, 16, 8), (0.5, 50, 16, 2), (0.1, 480, 16, 3), (0.001, 50, 16, 1)],
)
def test_steps_of_epochs(epochs: float, n: int, batch: int, want: int) -> None:
    assert steps_of(None, epochs, batch, n) == want


@pytest.mark.parametrize("rows", range(1, 9))
@pytest.mark.parametrize("world", range(1, 6))
def test_rank_slices_are_a_partition_and_rank_0_is_never_empty(rows: int, world: int) -> None:
    parts = [list(range(rows))[rank_slice(rows, rank, world)] for rank in range(world)]
    assert [row for part in parts for row in part] == list(range(rows))
    assert len(parts[0]) >= 1
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def _oracle_steps(data: TrainingArrays, steps: int, lr: float) -> torch.nn.Module:
    """Train with plain SGD, one example at a time, straight from the definition."""
    model = model_of(Use(use="mlp", args={"hidden": [16]}))
    order = BatchOrder(data.example_id, 16, seed=5)
    for step in range(steps):
        rows = order.batch(step)
        model.zero_grad()
        for row in rows:
            x = torch.tensor(data.x[row].astype(np.float32) / np.float32(255))[None]
            loss = torch.nn.functional.cross_entropy(model(x), torch.tensor([data.y[row]]))
            (float(data.w[row]) * loss / len(rows)).backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter.sub_(lr * parameter.grad)
    return model


def test_trap_19_loss_is_the_weighted_sum_over_the_true_batch_size() -> None:
    data = arrays(50)
    recipe = Recipe(
        optimizer=Use(use="sgd", args={"momentum": 0, "nesterov": False}), schedule=Use(use="constant")
    )
    model = model_of(Use(use="mlp", args={"hidden": [16]}))
    # 5 steps: the fourth has 2 examples.
    train_model(model, data, settings(steps=5, lr=0.3, weight_decay=0.0), pipeline_of(recipe))
    oracle = _oracle_steps(data, 5, 0.3)
    for mine, theirs in zip(model.parameters(), oracle.parameters()):
        assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-6)


def test_final_loss_is_that_of_the_last_batch() -> None:
    data, model = arrays(40), model_of(Use(use="mlp", args={"hidden": [16]}))
    recipe = Recipe(schedule=Use(use="constant"))
    result = train_model(model, data, settings(steps=1), pipeline_of(recipe))
    rows = BatchOrder(data.example_id, 16, 5).batch(0)
    logits = model_of(Use(use="mlp", args={"hidden": [16]}))(torch.tensor(data.x[rows] / np.float32(255)))
    losses = torch.nn.functional.cross_entropy(logits, torch.tensor(data.y[rows]), reduction="none")
    want = (losses.detach() * torch.tensor(data.w[rows])).sum() / 16
    assert result.final_loss == pytest.approx(float(want), rel=1e-5)
    assert (result.steps, result.examples_touched) == (1, 16)


def _train(
    use: Use, recipe: Recipe, start: State | None, keep: Callable[[State], None] | None, **changes: Any
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], float]:
    data = arrays(50)
    recorder = DynamicsRecorder(50) if changes.get("weighting") != "draw" else None
    model = model_of(use)
    result = train_model(
        model, data, settings(**changes), pipeline_of(recipe), start=start, checkpoint=keep, recorder=recorder
    )
    return own_state(model), recorder.state_dict() if recorder else {}, result.final_loss


SGD = Recipe(optimizer=Use(use="sgd"), schedule=Use(use="cosine"), augment=Use(use="flip"))


@pytest.mark.parametrize(
    ("use", "recipe", "changes"),
    [
        (MLP, Recipe(), {}),
        (CNN, FLIP, {}),
        (RESNET, SGD, {}),
        (MLP, Recipe(), {"weighting": "draw"}),
        (MLP, Recipe(), {"numerics": Numerics(autocast="bfloat16")}),
        (MLP, Recipe(), {"steps": 11}),
    ],
)
@pytest.mark.parametrize("at", [1, 2])
def test_killed_and_resumed_training_ends_in_the_same_bytes(
    use: Use, recipe: Recipe, changes: dict[str, Any], at: int
) -> None:
    whole = _train(use, recipe, None, None, **changes)
    kept: list[State] = []

    def dies(state: State) -> None:
        kept.append(state)
        if len(kept) == at:
            raise Killed

    with pytest.raises(Killed):
        _train(use, recipe, None, dies, **changes)
    # What a process of another history would see: other global streams.
    torch.manual_seed(99)
    resumed = _train(use, recipe, kept[-1], None, **changes)
    assert same_state(whole[0], resumed[0])
    assert same_state(whole[1], resumed[1])
    assert whole[2] == resumed[2]


def test_resuming_at_the_last_step_trains_no_more() -> None:
    kept: list[State] = []
    whole = _train(MLP, Recipe(), None, kept.append)
    assert kept[-1]["step"] == 12
    again = _train(MLP, Recipe(), kept[-1], None)
    assert same_state(whole[0], again[0])
    assert again[2] == whole[2]


def test_checkpoints_are_their_own_memory() -> None:
    kept: list[State] = []
    _train(MLP, Recipe(), None, kept.append)
    assert not same_state(kept[0]["model"], kept[1]["model"])
    first, second = (state["optimizer"]["state"][0]["exp_avg"] for state in kept[:2])
    assert not torch.equal(first, second)


def test_checkpoints_come_at_ends_of_epochs_not_more_often_than_asked() -> None:
    every: list[State] = []
    _train(MLP, Recipe(), None, every.append)
    assert [state["step"] for state in every] == [4, 8, 12]
    never: list[State] = []
    _train(MLP, Recipe(), None, never.append, checkpoint_every_s=1e6)
    assert never == []


def test_trap_12_no_global_state_is_changed() -> None:
    torch.manual_seed(4)
    np.random.seed(4)
    random.seed(4)
    threads = torch.get_num_threads()
    before = torch.get_rng_state(), global_numpy(), random.getstate()
    _train(CNN, FLIP, None, None, numerics=Numerics(threads=2))
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (global_numpy(), random.getstate())
    assert torch.get_num_threads() == threads
    with pytest.raises(StageError):
        _train(CNN, FLIP, None, None, lr=1e30)
    assert torch.equal(before[0], torch.get_rng_state())


def test_result_does_not_depend_on_global_streams_and_does_on_the_seed() -> None:
    torch.manual_seed(1)
    first = _train(MLP, Recipe(), None, None)
    torch.manual_seed(2)
    assert same_state(first[0], _train(MLP, Recipe(), None, None)[0])
    assert not same_state(first[0], _train(MLP, Recipe(), None, None, seed=6)[0])


def test_last_batch_of_one_row_is_trained_with_batch_norm() -> None:
    data = arrays(33, (8, 8))
    model = model_of(RESNET)
    result = train_model(model, data, settings(steps=6), pipeline_of())
    assert np.isfinite(result.final_loss)
    assert all(module.training for module in model.modules())


def test_snapshots_are_taken_at_their_steps_and_at_the_start_of_a_resumed_one() -> None:
    taken: dict[int, dict[str, torch.Tensor]] = {}
    kept: list[State] = []
    train_model(
        model_of(), arrays(50), settings(), pipeline_of(), checkpoint=kept.append, snapshots=(0, 4, 7, 12),
        snapshot=lambda step, state: taken.update({step: state}),
    )
    assert sorted(taken) == [0, 4, 7, 12]
    assert same_state(taken[0], own_state(model_of()))
    again: dict[int, dict[str, torch.Tensor]] = {}
    train_model(
        model_of(), arrays(50), settings(), pipeline_of(), start=kept[0], snapshots=(0, 4, 7, 12),
        snapshot=lambda step, state: again.update({step: state}),
    )
    assert sorted(again) == [4, 7, 12]
    assert all(same_state(taken[step], again[step]) for step in again)


def test_report_is_called_at_ends_of_epochs() -> None:
    seen: list[dict[str, float]] = []
    train_model(model_of(), arrays(50), settings(steps=10), pipeline_of(), report=seen.append)
    assert [(m["step"], m["epoch"]) for m in seen] == [(4, 1.0), (8, 2.0), (10, 2.5)]
    assert all(np.isfinite(m["loss"]) for m in seen)


def test_a_diverging_training_is_an_error_not_a_result() -> None:
    with pytest.raises(StageError, match=r"diverged.*Lower lr"):
        train_model(model_of(), arrays(50), settings(lr=1e30), pipeline_of())


@pytest.mark.parametrize("weights", [[1.0, float("nan")], [1.0, -0.5], [0.0, 0.0]])
def test_wrong_weights_are_refused(weights: list[float]) -> None:
    data = arrays(2)
    with pytest.raises(InputError, match="weights"):
        TrainingArrays(data.x, data.y, np.array(weights, dtype=np.float32), data.example_id)


def test_arrays_of_different_length_or_none_are_refused() -> None:
    data = arrays(3)
    with pytest.raises(InputError, match="differ in length"):
        TrainingArrays(data.x, data.y[:2], data.w, data.example_id)
    with pytest.raises(InputError, match="no example"):
        TrainingArrays(data.x[:0], data.y[:0], data.w[:0], data.example_id[:0])


def test_cuda_without_a_device_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(InputError, match="no CUDA device"):
        train_model(model_of(), arrays(5), settings(numerics=Numerics(device="cuda")), pipeline_of())


def _rank(rank: int, world_size: int, port: int, folder: str, case: tuple[Use, Recipe, int]) -> None:
    use, recipe, n = case
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size
    )
    try:
        model = model_of(use)
        kept: list[State] = []
        result = train_model(
            model, arrays(n), settings(), pipeline_of(recipe), checkpoint=kept.append, rank=rank, world_size=world_size
        )
        assert bool(kept) == (rank == 0)
        torch.save({"model": own_state(model), "loss": result.final_loss}, f"{folder}/{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


# Batches of 16, 16, 16, 1 (rank 1 empty) and 16, 16, 16, 3 (uneven).
@pytest.mark.parametrize(("n", "use"), [(49, Use(use="mlp", args={"hidden": [16]})), (51, CNN)])
def test_trap_19_two_ranks_have_the_gradient_of_the_global_batch(tmp_path: Path, n: int, use: Use) -> None:
    recipe = Recipe(
        optimizer=Use(use="sgd", args={"momentum": 0.9}), augment=Use(use="crop", args={"padding": 1, "flip_p": 0.5})
    )
    spawn(_rank, (2, free_port(), str(tmp_path), (use, recipe, n)), 2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert same_state(first["model"], second["model"])
    model = model_of(use)
    alone = train_model(model, arrays(n), settings(), pipeline_of(recipe))
    assert first["loss"] == pytest.approx(alone.final_loss, rel=1e-5)
    for name, value in own_state(model).items():
        assert torch.allclose(value, first["model"][name], rtol=1e-4, atol=1e-6), name
