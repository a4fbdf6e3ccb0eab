"""Models: shapes, seeded weights, and refusals that say why."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from cluster.errors import InputError
from tasks.models.build import build_model, check_model
from tasks.spec import Recipe, Use
from tests.tasks.training_case import global_numpy, same_state


def user_model(input_shape: tuple[int, ...], classes: int = 3) -> torch.nn.Module:
    """Be a user's callable that names only one of the two."""
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(int(np.prod(input_shape)), classes))


def not_a_model() -> int:
    return 3


def numpy_seeded() -> torch.nn.Module:
    layer = torch.nn.Linear(64, 3)
    with torch.no_grad():
        layer.weight.fill_(float(np.random.rand()) + random.random())
    return torch.nn.Sequential(torch.nn.Flatten(), layer)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("mlp", (64,)), ("mlp", (28, 28)), ("mlp", (3, 8, 8)),
        ("cnn", (28, 28)), ("cnn", (1, 8, 8)), ("cnn", (3, 9, 11)),
        ("cnn1d", (40,)), ("cnn1d", (1, 40)), ("cnn1d", (3, 5)),
        ("resnet18", (28, 28)), ("resnet18", (1, 28, 28)), ("resnet18", (3, 32, 32)), ("resnet18", (8, 8)),
    ],
)
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_built_in_models_accept_the_shapes_they_promise(name: str, shape: tuple[int, ...], dtype: str) -> None:
    args = {"width": 4} if name == "resnet18" else {}
    check_model(Use(use=name, args=args), shape, 5, Recipe(), dtype=dtype)


def test_resnet18_has_the_published_size() -> None:
    model = build_model(Use(use="resnet18"), (3, 32, 32), 10, 0)
    assert sum(p.numel() for p in model.parameters()) == 11_173_962


def test_mlp_default_is_one_hidden_layer_of_256() -> None:
    model = build_model(Use(use="mlp"), (28, 28), 10, 0)
    assert [tuple(p.shape) for p in model.parameters()] == [(256, 784), (256,), (10, 256), (10,)]


@pytest.mark.parametrize("name", ["mlp", "cnn", "cnn1d", "resnet18", "tests.tasks.test_models:numpy_seeded"])
def test_weights_are_a_function_of_the_seed_and_leave_global_streams_alone(name: str) -> None:
    use = Use(use=name, args={"width": 4} if name == "resnet18" else {})
    torch.manual_seed(1)
    before = torch.get_rng_state(), global_numpy(), random.getstate()
    first = build_model(use, (8, 8), 3, seed=7).state_dict()
    after = torch.get_rng_state(), global_numpy(), random.getstate()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    torch.manual_seed(2)
    assert same_state(first, build_model(use, (8, 8), 3, seed=7).state_dict())
    assert not same_state(first, build_model(use, (8, 8), 3, seed=8).state_dict())


def test_user_model_is_given_only_what_it_names() -> None:
    check_model(Use(use="tests.tasks.test_models:user_model"), (8, 8), 3, Recipe())


@pytest.mark.parametrize(
    ("use", "shape", "classes", "says"),
    [
        (Use(use="cnn"), (64,), 3, "needs images"),
        (Use(use="cnn1d"), (28, 28, 1), 3, "needs signals"),
        (Use(use="cnn1d"), (3,), 3, "at least 4 points"),
        (Use(use="resnet18"), (2, 2), 3, "at least 8 x 8"),
        (Use(use="mpl"), (64,), 3, "did you mean 'mlp'"),
        (Use(use="mlp", args={"hiden": [3]}), (64,), 3, "did you mean 'hidden'"),
        (Use(use="mlp", args={"hidden": [0]}), (64,), 3, "width of at least 1"),
        (Use(use="mlp"), (64,), 1, "at least 2"),
        (Use(use="tests.tasks.test_models:user_model"), (8, 8), 4, r"must return logits \(2, 4\)"),
        (Use(use="tests.tasks.test_models:not_a_model"), (8, 8), 3, "torch.nn.Module"),
        (Use(use="torch.nn:Linear", args={"in_features": 3, "out_features": 3}), (64,), 3, "does not accept inputs"),
        (Use(use="torch.nn:Linear", args={"in_features": 3}), (64,), 3, "could not be built"),
        (Use(use="tests.tasks.test_models:missing"), (64,), 3, "cannot be imported"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_with_the_reason(
    use: Use, shape: tuple[int, ...], classes: int, says: str
) -> None:
    with pytest.raises(InputError, match=says):
        check_model(use, shape, classes, Recipe())
