"""Forgetting and the area under the margin, against an oracle that keeps every presentation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import CorruptError
from tasks.dynamics import DynamicsRecorder
from tests.oracles.dynamics import History
from tests.tasks import training_case as case


def _observed(outcomes: list[list[bool]]) -> dict[str, list[float]]:
    """Return the table of examples whose presentations were right or wrong as told."""
    recorder = DynamicsRecorder(len(outcomes))
    for step in range(max(map(len, outcomes))):
        rows = [row for row, told in enumerate(outcomes) if step < len(told)]
        logits = torch.tensor([[1.0, 0.0] if outcomes[row][step] else [0.0, 1.0] for row in rows])
        recorder.observe(torch.tensor(rows), logits, torch.zeros(len(rows), dtype=torch.int64))
    table: dict[str, list[float]] = recorder.table(np.arange(len(outcomes), dtype=np.int64)).to_pydict()
    return table


def test_forgetting_counts_changes_from_right_to_wrong() -> None:
    R, W = True, False
    table = _observed([[R, W, R, W], [W, R, R, R], [R, R, R, R], [W, W, R, W], [W, W, W, R]])
    assert table["forgetting_events"] == [2, 0, 0, 1, 0]
    assert table["never_learned"] == [False] * 5
    assert table["forgetting"] == [2, 0, 0, 1, 0]


def test_trap_4_never_learned_examples_rank_above_all_others() -> None:
    R, W = True, False
    table = _observed([[W, W, W, W], [R, W, R, W], [R, R, R, R]])
    assert table["never_learned"] == [True, False, False]
    assert table["forgetting"] == [5, 2, 0]
    assert table["forgetting_events"] == [0, 2, 0]


def test_trap_7_aum_is_the_mean_margin_of_logits_over_all_presentations() -> None:
    recorder = DynamicsRecorder(1)
    row, target = torch.tensor([0]), torch.tensor([1])
    for logits in ([3.0, 10.0, -1.0], [100.0, 0.0, 2.0], [0.0, 5.0, 5.0]):
        recorder.observe(row, torch.tensor([logits]), target)
    table = recorder.table(np.zeros(1, dtype=np.int64)).to_pydict()
    assert table["aum"] == [pytest.approx((7 - 100 + 0) / 3)]
    # The tie of the last presentation is wrong: right, wrong, wrong.
    assert table["forgetting_events"] == [1]


def test_an_example_never_presented_says_so() -> None:
    recorder = DynamicsRecorder(2)
    recorder.observe(torch.tensor([1]), torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    table = recorder.table(np.arange(2, dtype=np.int64)).to_pydict()
    assert table["presentations"] == [0, 1]
    assert (table["never_learned"][0], table["forgetting"][0], table["aum"][0]) == (True, 1.0, 0.0)


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 30), k=st.integers(2, 5), batch=st.integers(1, 9), epochs=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_running_state_equals_the_full_history(n: int, k: int, batch: int, epochs: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    recorder, oracle = DynamicsRecorder(n), History(n)
    targets = rng.integers(0, k, n)
    for epoch in range(epochs):
        order = rng.permutation(n)
        for start in range(0, n, batch):
            rows = order[start : start + batch]
            # Small integers, so that ties happen.
            logits = rng.integers(-2, 3, (len(rows), k)).astype(np.float32)
            recorder.observe(torch.tensor(rows), torch.tensor(logits), torch.tensor(targets[rows]))
            oracle.observe(rows, logits, targets[rows])
        if epoch == epochs // 2:
            state = recorder.state_dict()
            recorder = DynamicsRecorder(n)
            recorder.load_state_dict(state)
    table = recorder.table(np.arange(n, dtype=np.int64))
    for name, want in oracle.columns().items():
        assert np.allclose(table.column(name).to_numpy(zero_copy_only=False), want, atol=1e-6), name


def test_state_is_independent_of_the_number_of_classes_and_presentations() -> None:
    recorder = DynamicsRecorder(100)
    for _ in range(20):
        recorder.observe(torch.arange(100), torch.randn(100, 50), torch.zeros(100, dtype=torch.int64))
    assert sum(value.numel() * value.element_size() for value in recorder.state_dict().values()) == 100 * 18


def test_what_waits_is_counted_as_if_it_had_not_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks import dynamics

    generator = torch.Generator().manual_seed(0)
    # Epochs of 30 examples in batches of 7, so that an example can wait twice; logits that are changed behind its back.
    order = torch.cat([torch.randperm(30, generator=generator) for _ in range(5)]).split(7)
    batches = [(rows.unique(), torch.randn(30, 3, generator=generator).round()) for rows in order]
    targets = torch.arange(30) % 3
    states = []
    for room in (0, 50, 10_000):
        monkeypatch.setattr(dynamics, "WAITING_LOGITS", room)
        recorder = DynamicsRecorder(30)
        for rows, logits in batches:
            given = logits[rows]
            recorder.observe(rows, given, targets[rows])
            given.zero_()
        states.append(recorder.state_dict())
    for state in states[1:]:
        assert all(torch.equal(state[name], states[0][name]) for name in DynamicsRecorder.FIELDS)


def test_state_of_another_size_is_refused() -> None:
    with pytest.raises(CorruptError, match="values"):
        DynamicsRecorder(3).load_state_dict(DynamicsRecorder(4).state_dict())


def test_a_training_records_each_example_once_an_epoch() -> None:
    from tasks.training import train_model

    recorder = DynamicsRecorder(50)
    train_model(case.model_of(), case.arrays(50), case.settings(steps=9), case.pipeline_of(), recorder=recorder)
    # Two whole epochs of 4 batches, and one batch of 16.
    assert sorted(recorder.state_dict()["presentations"].tolist()) == [2] * 34 + [3] * 16
