"""What only a CUDA device can show: skipped where there is none."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from tasks.arithmetic import arithmetic
from tasks.recipe import Pipeline
from tasks.scores import score_batch
from tasks.spec import Numerics, Recipe, Use
from tests.oracles import scores as oracle
from tests.tasks.grand_models import CASES, make
from tests.tasks.test_grand import LOOPED

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
CUDA = Numerics(device="cuda")
# The fused cell of a GRU hides its two biases, which take the loop.
LOOPED_HERE = {**LOOPED, "recurrent": 2}


@pytest.mark.parametrize("name", list(CASES))
def test_grand_on_the_gpu_is_the_length_of_each_examples_own_gradient(
    name: str, looped: list[int]
) -> None:
    model, inputs, targets = make(name, 12)
    with arithmetic(CUDA):
        found = score_batch(copy.deepcopy(model).cuda(), inputs.cuda(), targets, ["grand"])["grand"].cpu().numpy()
    np.testing.assert_allclose(found, oracle.gradient_norms(model, inputs, targets), rtol=1e-4)
    assert looped == ([LOOPED_HERE[name]] if name in LOOPED_HERE else [])


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_prepare_gives_the_same_inputs_as_on_the_cpu(dtype: type) -> None:
    x = np.random.default_rng(0).integers(0, 256, (7, 3, 5, 4)).astype(dtype)
    recipe = Recipe(transform=Use(use="standardize", args={"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}))
    here, there = Pipeline(recipe, CUDA).prepare(x), Pipeline(recipe).prepare(x)
    assert here.is_cuda
    np.testing.assert_allclose(here.cpu().numpy(), there.numpy(), rtol=1e-6, atol=1e-6)
