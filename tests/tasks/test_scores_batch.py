"""Scores of a batch against their textbook formulas, and the traps that concern them."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cluster.errors import InputError
from tasks import scores as package
from tasks.scores import score_batch
from tasks.scores.aum import aum
from tasks.scores.forgetting import forgetting
from tasks.scores.registry import SCORES, score_info
from tasks.scores.uniform import uniform
from tests.oracles import scores as oracle


class Given(nn.Module):
    """Return its input as logits."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


logit_rows = st.lists(
    st.lists(st.floats(-60, 60, width=32), min_size=4, max_size=4), min_size=1, max_size=8
)


@given(rows=logit_rows, labels=st.lists(st.integers(0, 3), min_size=8, max_size=8))
@settings(max_examples=60, deadline=None)
def test_scores_of_logits_equal_their_formulas(rows: list[list[float]], labels: list[int]) -> None:
    logits, targets = torch.tensor(rows), torch.tensor(labels[: len(rows)])
    names = list(oracle.FROM_LOGITS)
    got = score_batch(Given(), logits, targets, names)
    assert list(got) == names
    for name in names:
        assert got[name].dtype == torch.float32 and got[name].shape == targets.shape
        expected = oracle.from_logits(name, logits.numpy(), targets.numpy())
        # A float32 log_softmax of logits of size 60 has errors of about 4e-6.
        np.testing.assert_allclose(got[name].numpy(), expected, rtol=2e-4, atol=2e-5)


def test_scores_of_well_fitted_examples_keep_their_order() -> None:
    # 1 - p_y is below float32's resolution at 1 for all of these: rounding would tie them.
    gaps = torch.linspace(18, 26, 50)
    logits = torch.stack([gaps, torch.zeros(50), torch.zeros(50)], 1)
    got = score_batch(Given(), logits, torch.zeros(50, dtype=torch.long), ["el2n", "least_confidence"])
    for name in ("el2n", "least_confidence"):
        assert (got[name].diff() < 0).all()
        expected = oracle.from_logits(name, logits.numpy(), np.zeros(50, int))
        np.testing.assert_allclose(got[name].numpy(), expected, rtol=1e-4)


def test_trap_2_each_direction_keeps_the_hard_example() -> None:
    easy, hard = [9.0, 0.0, 0.0], [0.2, 0.1, 0.0]
    got = score_batch(Given(), torch.tensor([easy, hard]), torch.tensor([0, 1]), list(oracle.FROM_LOGITS))
    for name, values in got.items():
        kept_first = values.argmax() if score_info(name).direction == "high" else values.argmin()
        assert int(kept_first) == 1, name
    assert {name: info.direction for name, info in SCORES.items()} == {
        "random": "high", "el2n": "high", "grand": "high", "grand_last": "high", "loss": "high", "entropy": "high",
        "margin": "low", "least_confidence": "high", "forgetting": "high", "aum": "low",
    }  # fmt: skip


def test_trap_4_never_learned_examples_rank_above_every_other() -> None:
    never, late = [False] * 6, [False] * 5 + [True]
    histories = [never, [True] * 6, [False, True] * 3, [True, False] * 3, late]
    facts = [oracle.forgetting(history) for history in histories]
    got = forgetting(
        {
            "forgetting_events": np.array([fact[0] for fact in facts], np.int32),
            "never_learned": np.array([fact[1] for fact in facts]),
            "presentations": np.array([len(history) for history in histories], np.int32),
        }
    )
    np.testing.assert_array_equal(got, [fact[2] for fact in facts])
    assert got.argmax() == 0 and np.isfinite(got).all() and got.dtype == np.float32


def test_trap_7_aum_is_the_recorded_mean_of_logit_margins_over_all_presentations() -> None:
    from tasks.dynamics import DynamicsRecorder

    generator = torch.Generator().manual_seed(0)
    epochs = torch.randn(5, 6, 4, generator=generator) * 8
    labels = torch.arange(6) % 4
    recorder = DynamicsRecorder(6)
    for logits in epochs:
        recorder.observe(torch.arange(6), logits, labels)
    table = recorder.table(np.arange(6))
    got = aum({"aum": table.column("aum").to_numpy()})
    expected = [oracle.area_under_margin(epochs[:, i].tolist(), int(labels[i])) for i in range(6)]
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    # Logits, not probabilities: margins of probabilities lie in [-1, 1]. And not those of the last epoch alone.
    assert np.abs(got).max() > 1
    last = [oracle.area_under_margin(epochs[-1:, i].tolist(), int(labels[i])) for i in range(6)]
    assert not np.allclose(got, last)


def test_trap_12_random_is_a_function_of_seed_and_id_alone() -> None:
    ids = np.array([5, 2**62 + 1, 0, 2**53, 2**53 + 1], np.int64)
    state = np.random.get_state()[1].copy()  # type: ignore[union-attr]
    values = uniform(7, ids)
    assert values.dtype == np.float32 and (values >= 0).all() and (values < 1).all()
    np.testing.assert_array_equal(uniform(7, ids[::-1].copy()), values[::-1])
    assert not np.array_equal(uniform(8, ids), values)
    # Ids one apart beyond 2^53 are two examples.
    assert values[3] != values[4]
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # type: ignore[arg-type]
    many = uniform(0, np.arange(200_000))
    assert abs(many.mean() - 0.5) < 0.005 and many.max() < 1
    assert abs(np.corrcoef(many, uniform(1, np.arange(200_000)))[0, 1]) < 0.01


def test_trap_14_ids_that_are_not_int64_are_refused() -> None:
    with pytest.raises(TypeError, match="int64"):
        uniform(0, np.arange(4, dtype=np.int32))  # type: ignore[arg-type]


def test_trap_15_no_score_swallows_an_option() -> None:
    functions = [score_batch]
    for name in SCORES:
        module = __import__(f"tasks.scores.{'uniform' if name == 'random' else name}", fromlist=["x"])
        functions.append(getattr(module, "uniform" if name == "random" else name))
    for function in functions:
        kinds = {parameter.kind for parameter in inspect.signature(function).parameters.values()}
        assert not kinds & {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}, function


def test_labels_are_read_only_where_the_score_needs_them() -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    free = [name for name, info in SCORES.items() if info.by_batch and not info.reads_label]
    assert free == ["entropy", "margin", "least_confidence"]
    with_labels = score_batch(Given(), logits, torch.zeros(4, dtype=torch.long), free)
    without = score_batch(Given(), logits, None, free)
    for name in free:
        assert torch.equal(with_labels[name], without[name])
    # Labels that no score asked for are not even checked.
    score_batch(Given(), logits, torch.full((4,), 99), free)
    with pytest.raises(InputError, match="reads the label"):
        score_batch(Given(), logits, None, ["entropy", "el2n"])


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.tensor([0, 1, 2, 3]), "classes 0 to 2"),
        (torch.tensor([0, -1, 2, 0]), "run from -1"),
        (torch.tensor([0, 1]), "one for each of 4 rows"),
        (torch.zeros(4), "whole numbers"),
    ],
)
def test_wrong_labels_are_refused(targets: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        score_batch(Given(), torch.randn(4, 3), targets, ["loss"])


@pytest.mark.parametrize(
    ("name", "message"),
    [("el2m", "did you mean 'el2n'"), ("random", "example ids alone"), ("aum", "dynamics"), ("forgetting", "dynamics")],
)
def test_names_that_no_batch_gives_are_refused(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        score_batch(Given(), torch.randn(4, 3), torch.zeros(4, dtype=torch.long), [name])


@pytest.mark.parametrize("logits", [torch.randn(4), torch.randn(4, 1), torch.randn(4, 2, 2)])
def test_models_that_return_no_logits_are_refused(logits: torch.Tensor) -> None:
    with pytest.raises(InputError, match="must return logits"):
        score_batch(Given(), logits, None, ["entropy"])


def test_one_forward_pass_serves_all_scores() -> None:
    model = Given()
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    names = list(oracle.FROM_LOGITS)
    score_batch(model, torch.randn(4, 3), torch.zeros(4, dtype=torch.long), names)
    assert calls == [1]
    assert score_batch(model, torch.randn(4, 3), None, []) == {}
    assert calls == [1]


def test_scores_are_float32_whatever_the_model_computes_in() -> None:
    class Half(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.bfloat16()

    logits = torch.tensor([[2.0, 0.5, -1.0]])
    got = score_batch(Half(), logits, torch.tensor([0]), ["entropy", "el2n"])
    for name, values in got.items():
        assert values.dtype == torch.float32
        np.testing.assert_allclose(values, oracle.from_logits(name, logits.numpy(), np.array([0])), rtol=1e-6)


def test_values_that_are_not_finite_are_returned_as_they_come() -> None:
    got = score_batch(Given(), torch.tensor([[float("nan"), 0.0], [1.0, 0.0]]), torch.tensor([0, 0]), ["loss"])
    assert got["loss"].isnan().tolist() == [True, False]


def test_the_package_offers_score_batch_and_nothing_unknown() -> None:
    assert package.score_batch is score_batch
    with pytest.raises(AttributeError):
        package.nothing  # noqa: B018


def test_grand_last_of_logits_that_are_not_numbers_is_not_a_number() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    found = score_batch(model, torch.full((5, 3), float("nan")), torch.zeros(5, dtype=torch.int64), ["grand_last", "el2n"])
    assert found["grand_last"].isnan().all()
    assert found["el2n"].isnan().all()
