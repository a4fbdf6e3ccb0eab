"""Whose rows are whose inside a model: told apart by a probe, and never taken over from a batch whose rows lay elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cluster.errors import InputError
from tasks.scores import norms, probing, score_batch
from tasks.scores.layout import Layout, by_example, digits_of, fitting_layouts
from tests.oracles import scores as oracle
from tests.tasks.grand_models import CLASSES
from tests.tasks.grand_sequences import Packed, PackedByProduct, PackedBySlices, Routed
from tests.tasks.grand_uses import Use


def grand(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> np.ndarray:
    return score_batch(model, inputs, targets, ["grand"])["grand"].numpy()


def probed(lengths: torch.Tensor, owner: torch.Tensor, examples: int) -> torch.Tensor:
    """Return the lengths of rows whose gradients are scaled by the digits of their owners' numbers."""
    return lengths * 2.0 ** digits_of(examples)[:, owner]


@pytest.mark.parametrize("examples", [3, 16, 17, 300])
@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 6), (6, 1), (2, 3), (3, 2)])
def test_the_probe_finds_every_layout(before: int, after: int, examples: int) -> None:
    lengths = torch.rand(before * examples * after, generator=torch.Generator().manual_seed(0)) + 0.1
    owner = torch.arange(len(lengths)) // after % examples
    assert fitting_layouts(lengths, probed(lengths, owner, examples), examples).fits == {(before, after)}
    grouped = by_example(owner, Layout(before, examples, after))
    assert torch.equal(grouped, torch.arange(examples).unsqueeze(1).expand(examples, before * after))


def test_digits_tell_examples_apart() -> None:
    for examples, digits in ((1, 1), (16, 1), (17, 2), (256, 2), (257, 3)):
        found = digits_of(examples)
        assert found.shape == (digits, examples) and found.max() < 16 and len(found.unique(dim=1).T) == examples


def test_the_probe_refuses_rows_that_mix_examples_and_says_nothing_of_zeros() -> None:
    lengths = torch.rand(60, generator=torch.Generator().manual_seed(0)) + 0.1
    own = torch.arange(60) // 3
    scaled = probed(lengths, own, 20)
    assert fitting_layouts(lengths, scaled, 20).fits == {(1, 3)}
    # A row of two examples, two rows of which each is the other's, and rows of an example that there is not.
    for owner in (own.clone().index_fill_(0, torch.tensor([7]), 19), own.roll(1), own + 240):
        other = lengths * 2.0 ** (owner // torch.tensor([[1], [16]]) % 16)
        assert fitting_layouts(lengths, other, 20).fits == frozenset()
    mixed = scaled.clone()
    mixed[:, 5] = (scaled[:, 5] + scaled[:, 50]) / 2
    assert fitting_layouts(lengths, mixed, 20).fits == frozenset()
    assert fitting_layouts(lengths * 0, lengths * 0, 20) is None
    # Only the first row of each example carries a gradient: four rows each leave two orders open, five do not.
    for each, open_layouts in ((4, 2), (5, 1)):
        sparse = torch.zeros(3 * each)
        sparse[::each] = lengths[:3]
        seen = fitting_layouts(sparse, probed(sparse, torch.arange(3 * each) // each, 3), 3)
        assert len(seen.fits) == open_layouts and torch.equal(seen.told, sparse > 0)


@pytest.mark.parametrize("build", [Packed, PackedBySlices, PackedByProduct, Routed])
def test_rows_that_lie_by_the_data_are_not_taken_for_those_of_an_earlier_batch(build: type[nn.Module]) -> None:
    # Every batch has as many words, or examples for each expert; first evenly, then not, and then even where a probe looks first.
    generator = torch.Generator().manual_seed(0)
    model = build().eval()
    targets = torch.randint(0, CLASSES, (32,), generator=generator)
    for lengths in ([4] * 32, [2, 6] * 16, [4] * 8 + [2, 6] * 12, [6, 2] * 16):
        if build is Routed:
            inputs = torch.randn(32, 8, 8, generator=generator)
            second = torch.arange(8) < torch.tensor(lengths).unsqueeze(1)
            inputs[..., 0] = inputs[..., 0].abs() * torch.where(second, 1, -1)
        else:
            words = torch.randint(1, 11, (32, 7), generator=generator)
            inputs = words * (torch.arange(7) < torch.tensor(lengths).unsqueeze(1))
        np.testing.assert_allclose(grand(model, inputs, targets), oracle.gradient_norms(model, inputs, targets), rtol=1e-5)


def test_one_structure_and_other_shapes_are_two_things(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norms, "squares_one_by_one", None)
    # A layer over (H, B, W): 4 x 9 and 9 x 4 have as many rows an example, which lie elsewhere.
    class Middle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.out = nn.Linear(3, 4), nn.Linear(4, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(torch.relu(self.inner(x.permute(2, 0, 3, 1))).mean((0, 2)))

    model, targets = Middle(), torch.arange(20) % CLASSES
    for height, width in ((4, 9), (9, 4), (6, 6), (4, 9)):
        inputs = torch.randn(20, 3, height, width, generator=torch.Generator().manual_seed(height))
        np.testing.assert_allclose(grand(model, inputs, targets), oracle.gradient_norms(model, inputs, targets), rtol=1e-5)


def test_structures_of_which_every_batch_has_its_own_are_not_kept_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "MOST_KNOWN", 3)
    model = nn.Linear(3, CLASSES)
    for rows in (2, 3, 4, 5, 2):
        inputs, targets = torch.randn(rows, 3, generator=torch.Generator().manual_seed(rows)), torch.arange(rows) % CLASSES
        np.testing.assert_allclose(grand(model, inputs, targets), oracle.gradient_norms(model, inputs, targets), rtol=1e-5)
        assert len(probing._KNOWN[model]) <= 3


def layers() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {"inner": nn.Linear(6, 6), "out": nn.Linear(6, CLASSES)}


def reversed_where(m: Use, x: torch.Tensor) -> torch.Tensor:
    flag = x[:, 0].sum() > 0
    h = torch.tanh(m.inner(torch.where(flag, x, x.flip(0))))
    return m.out(torch.where(flag, h, h.flip(0)))


def rolled_where(m: Use, x: torch.Tensor) -> torch.Tensor:
    flag = (x[:, 0].sum() > 0).float()
    h = torch.tanh(m.inner(flag * x + (1 - flag) * x.roll(1, 0)))
    return m.out(flag * h + (1 - flag) * h.roll(-1, 0))


def halves_where(m: Use, x: torch.Tensor) -> torch.Tensor:
    flag, half = x[:, 0].sum() > 0, len(x) // 2
    h = torch.tanh(m.inner(torch.where(flag, x, torch.cat([x[half:], x[:half]]))))
    return m.out(torch.where(flag, h, torch.cat([h[len(x) - half :], h[: len(x) - half]])))


@pytest.mark.parametrize("run", [reversed_where, rolled_where, halves_where])
def test_an_order_that_a_flag_in_the_data_chooses_is_probed_always(run: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
    model, targets = Use(run, **layers()), torch.arange(8) % CLASSES
    for sign in (1, -1, 1):
        inputs = torch.randn(8, 6, generator=torch.Generator().manual_seed(0)) + 2 * sign
        np.testing.assert_allclose(grand(model, inputs, targets), oracle.gradient_norms(model, inputs, targets), rtol=1e-5)


def test_rows_of_which_no_probe_has_told_are_probed_when_a_gradient_reaches_them(looped: list[int]) -> None:
    # The layer sees the examples in reverse. Of the first batch only the middle one is alive, which has its own place there.
    model = Use(lambda m, x: m.out(torch.relu(m.inner(x.flip(0))).flip(0)), **layers())
    with torch.no_grad():
        model.inner.bias.fill_(-3)
        model.inner.weight.abs_()
    targets = torch.arange(7) % CLASSES
    first, second = -torch.rand(7, 6), torch.rand(7, 6) * 5 + 3
    first[3] = 5
    for inputs in (first, second, first):
        np.testing.assert_allclose(grand(model, inputs, targets), oracle.gradient_norms(model, inputs, targets), rtol=1e-5)
    # The same without the flips, which no structure forbids to keep.
    model.run = lambda m, x: m.out(torch.relu(m.inner(x)))
    probing._KNOWN.pop(model, None)
    looped.clear()
    for inputs in (first, second, first):
        np.testing.assert_allclose(grand(model, inputs, targets), oracle.gradient_norms(model, inputs, targets), rtol=1e-5)
    assert not looped and all(one.told is None for found in probing._KNOWN[model].values() for one in found)


def test_a_batch_that_leaves_two_layouts_open_decides_nothing_for_the_next(looped: list[int]) -> None:
    # Alive is the first word of the first example alone: its row is the first in either order.
    model = Use(lambda m, x: m.out(torch.relu(m.inner(x)).sum(1)), **layers())
    with torch.no_grad():
        model.inner.bias.fill_(-3)
        model.inner.weight.abs_()
    targets = torch.arange(7) % CLASSES
    first, second = -torch.rand(7, 4, 6), torch.rand(7, 4, 6) * 5 + 3
    first[0, 0] = 5
    for inputs, loops in ((first, 1), (second, 0), (second, 0)):
        looped.clear()
        np.testing.assert_allclose(grand(model, inputs, targets), oracle.gradient_norms(model, inputs, targets), rtol=1e-5)
        assert len(looped) == loops


def test_an_example_that_overflows_leaves_later_batches_and_its_neighbours_as_they_are(looped: list[int]) -> None:
    model = Use(lambda m, x: m.out(torch.exp(m.inner(x))), **layers())
    inputs, targets = torch.randn(16, 6, generator=torch.Generator().manual_seed(1)), torch.arange(16) % CLASSES
    expected = grand(model, inputs, targets)
    probing._KNOWN.pop(model)
    spoiled = inputs.clone()
    spoiled[3] = 1e4
    found = grand(model, spoiled, targets)
    assert not np.isfinite(found[3])
    np.testing.assert_array_equal(np.delete(found, 3), np.delete(expected, 3))
    np.testing.assert_array_equal(grand(model, inputs, targets), expected)
    assert not looped


def test_a_model_that_mixes_the_examples_of_a_batch_is_refused() -> None:
    def run(m: Use, x: torch.Tensor) -> torch.Tensor:
        h = m.inner(x)
        return m.out(torch.tanh(h - h.mean(0)))

    inputs, targets = torch.randn(8, 6, generator=torch.Generator().manual_seed(0)), torch.arange(8) % CLASSES
    with pytest.raises(InputError, match="mixes the examples of a batch: the logits of 8 of 8"):
        grand(Use(run, **layers()), inputs, targets)


def test_a_hook_on_a_parameter_changes_its_gradient_as_in_a_backward_pass() -> None:
    model = Use(lambda m, x: m.out(torch.tanh(m.inner(x))), **layers())
    model.inner.weight.register_hook(lambda gradient: gradient * 0)
    inputs, targets = torch.randn(5, 6, generator=torch.Generator().manual_seed(0)), torch.arange(5) % CLASSES
    found = grand(model, inputs, targets)
    whole = oracle.gradient_norms(model, inputs, targets)
    model.inner.weight.requires_grad_(False)
    np.testing.assert_allclose(found, oracle.gradient_norms(model, inputs, targets), rtol=1e-5)
    assert (found < 0.99 * whole).all()


def test_an_empty_batch_has_no_norms() -> None:
    model = Use(lambda m, x: m.out(torch.tanh(m.inner(x))), **layers())
    found = score_batch(model, torch.zeros(0, 6), torch.zeros(0, dtype=torch.long), ["grand", "el2n"])
    assert all(values.shape == (0,) and values.dtype == torch.float32 for values in found.values()) and len(found) == 2
