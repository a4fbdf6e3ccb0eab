"""Whose rows are whose inside a model: told apart by a probe, and never taken over from a batch whose rows lay elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tasks.scores import norms, score_batch
from tasks.scores.layout import Layout, by_example, digits_of, fitting_layouts
from tests.oracles import scores as oracle
from tests.tasks.grand_models import CLASSES
from tests.tasks.grand_sequences import Packed, PackedByProduct, PackedBySlices, Routed


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
    assert fitting_layouts(lengths, probed(lengths, owner, examples), examples) == {(before, after)}
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
    assert fitting_layouts(lengths, scaled, 20) == {(1, 3)}
    # A row of two examples, two rows of which each is the other's, and rows of an example that there is not.
    for owner in (own.clone().index_fill_(0, torch.tensor([7]), 19), own.roll(1), own + 240):
        other = lengths * 2.0 ** (owner // torch.tensor([[1], [16]]) % 16)
        assert fitting_layouts(lengths, other, 20) == frozenset()
    mixed = scaled.clone()
    mixed[:, 5] = (scaled[:, 5] + scaled[:, 50]) / 2
    assert fitting_layouts(lengths, mixed, 20) == frozenset()
    assert fitting_layouts(lengths * 0, lengths * 0, 20) is None
    # Only the first row of each example carries a gradient: four rows each leave two orders open, five do not.
    for each, open_layouts in ((4, 2), (5, 1)):
        sparse = torch.zeros(3 * each)
        sparse[::each] = lengths[:3]
        fits = fitting_layouts(sparse, probed(sparse, torch.arange(3 * each) // each, 3), 3)
        assert len(fits or ()) == open_layouts


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
    monkeypatch.setattr(norms, "_loop", None)
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
    monkeypatch.setattr(norms, "MOST_KNOWN", 3)
    model = nn.Linear(3, CLASSES)
    for rows in (2, 3, 4, 5, 2):
        inputs, targets = torch.randn(rows, 3, generator=torch.Generator().manual_seed(rows)), torch.arange(rows) % CLASSES
        np.testing.assert_allclose(grand(model, inputs, targets), oracle.gradient_norms(model, inputs, targets), rtol=1e-5)
        assert len(norms._KNOWN[model]) <= 3
