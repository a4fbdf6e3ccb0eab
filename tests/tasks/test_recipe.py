"""Recipe pieces: what they compute, that they are functions of (seed, step), and what is refused."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch

from cluster.errors import InputError
from tasks.models.build import check_model
from tasks.recipe import Pipeline
from tasks.spec import Recipe, Use
from tests.tasks.training_case import MLP


def own_collate(x: np.ndarray[Any, Any], shift: float) -> np.ndarray[Any, Any]:
    return x.astype(np.float32) + np.float32(shift)


def wrong_collate(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return x.astype(np.float64)


def mean_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits, targets)


def own_optimizer(parameters: Iterable[torch.nn.Parameter], lr: float) -> torch.optim.Optimizer:
    return torch.optim.Adagrad(parameters, lr=lr)


def test_default_prepare_divides_bytes_by_255_and_leaves_floats_alone() -> None:
    x = np.arange(256, dtype=np.uint8).reshape(4, 64)
    assert np.array_equal(Pipeline(Recipe()).prepare(x).numpy(), x.astype(np.float32) / np.float32(255))
    explicit = Pipeline(Recipe(collate=Use(use="cast"), transform=Use(use="scale", args={"by": 1.0})))
    assert np.array_equal(explicit.prepare(x).numpy(), x.astype(np.float32) / np.float32(255))
    floats = np.array([[-3.5, 1e9]], dtype=np.float32)
    assert np.array_equal(Pipeline(Recipe()).prepare(floats).numpy(), floats)


def test_prepare_does_not_write_into_the_stored_array() -> None:
    x = np.ones((2, 3), dtype=np.float32)
    x.flags.writeable = False
    recipe = Recipe(transform=Use(use="tests.tasks.test_recipe:double_in_place"))
    assert Pipeline(recipe).prepare(x).tolist() == [[2.0] * 3] * 2
    assert x.tolist() == [[1.0] * 3] * 2


def double_in_place(x: torch.Tensor) -> torch.Tensor:
    return x.mul_(2)


def test_in_place_transform_does_not_reach_writable_storage() -> None:
    x = np.ones((4, 3), dtype=np.float32)
    pipeline = Pipeline(Recipe(transform=Use(use="tests.tasks.test_recipe:double_in_place")))
    pipeline.prepare(x[:2])
    assert x.tolist() == [[1.0] * 3] * 4


def test_standardize_by_channel_and_by_number() -> None:
    x = np.random.default_rng(0).normal(size=(5, 3, 4, 4)).astype(np.float32)
    use = Use(use="standardize", args={"mean": [0.1, 0.2, 0.3], "std": [1, 2, 4]})
    want = (x - np.array([0.1, 0.2, 0.3], np.float32)[:, None, None]) / np.array([1, 2, 4], np.float32)[:, None, None]
    assert np.allclose(Pipeline(Recipe(transform=use)).prepare(x).numpy(), want, atol=1e-7)
    number = Use(use="standardize", args={"mean": 0.5, "std": 0.25})
    assert np.allclose(Pipeline(Recipe(transform=number)).prepare(x).numpy(), (x - 0.5) / 0.25, atol=1e-6)


@pytest.mark.parametrize("shape", [(40, 6, 7), (40, 3, 6, 7)])
def test_crop_cuts_each_image_out_of_its_padded_self(shape: tuple[int, ...]) -> None:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0)) + 0.1
    pipeline = Pipeline(Recipe(augment=Use(use="crop", args={"padding": 2})))
    out = pipeline.augment(x, 3, 1)
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2))
    places = set()
    for before, after in zip(padded, out):
        found = [
            (top, left) for top in range(5) for left in range(5)
            if torch.equal(before[..., top : top + 6, left : left + 7], after)
        ]
        assert len(found) == 1
        places.add(found[0])
    assert len(places) > 10


@pytest.mark.parametrize("shape", [(400, 4, 5), (400, 2, 4, 5)])
def test_flip_mirrors_about_half_of_the_images(shape: tuple[int, ...]) -> None:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    out = Pipeline(Recipe(augment=Use(use="flip"))).augment(x, 3, 1)
    mirrored = [torch.equal(after, before.flip(-1)) for before, after in zip(x, out)]
    kept = [torch.equal(after, before) for before, after in zip(x, out)]
    assert all(a != b for a, b in zip(mirrored, kept))
    assert 150 < sum(mirrored) < 250


def test_augmentation_is_a_function_of_seed_and_step_alone() -> None:
    x = torch.rand(20, 8, 8, generator=torch.Generator().manual_seed(0))
    pipeline = Pipeline(Recipe(augment=Use(use="crop", args={"flip_p": 0.5})))
    state = torch.get_rng_state()
    first = pipeline.augment(x, 3, 1)
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(7)
    assert torch.equal(first, pipeline.augment(x, 3, 1))
    assert not torch.equal(first, pipeline.augment(x, 3, 2))
    assert not torch.equal(first, pipeline.augment(x, 4, 1))


def test_user_pieces_and_torch_classes_by_import_path() -> None:
    here = "tests.tasks.test_recipe"
    recipe = Recipe(
        collate=Use(use=f"{here}:own_collate", args={"shift": 1.5}),
        optimizer=Use(use="torch.optim:SGD", args={"momentum": 0.5, "weight_decay": 0.25}),
        schedule=Use(use="torch.optim.lr_scheduler:StepLR", args={"step_size": 3}),
        loss=Use(use="cross_entropy", args={"label_smoothing": 0.1}),
    )
    check_model(MLP, (4,), 3, recipe)
    pipeline = Pipeline(recipe)
    assert pipeline.prepare(np.zeros((1, 2), np.uint8)).tolist() == [[1.5, 1.5]]
    group = pipeline.optimizer([torch.nn.Parameter(torch.zeros(1))], lr=0.5, weight_decay=9.0).param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.5, 0.5, 0.25)
    own = Pipeline(Recipe(optimizer=Use(use=f"{here}:own_optimizer")))
    assert own.optimizer([torch.nn.Parameter(torch.zeros(1))], lr=0.5, weight_decay=9.0).defaults["weight_decay"] == 0


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 50])
@pytest.mark.parametrize("name", ["onecycle", "cosine"])
def test_schedules_cover_trainings_of_any_length(name: str, steps: int) -> None:
    pipeline = Pipeline(Recipe(schedule=Use(use=name)))
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = pipeline.optimizer([parameter], lr=0.1, weight_decay=0.0)
    schedule = pipeline.schedule(optimizer, steps, 0.1)
    rates = []
    for step in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step + 1 < steps:
            schedule.step()
    assert max(rates) <= 0.1 + 1e-9
    if steps == 50:
        assert max(rates) > 0.099
        assert rates[-1] < 1e-3


def test_warmup_of_constant_and_cosine() -> None:
    for name in ("constant", "cosine"):
        pipeline = Pipeline(Recipe(schedule=Use(use=name, args={"warmup": 4})))
        optimizer = pipeline.optimizer([torch.nn.Parameter(torch.zeros(1))], lr=1.0, weight_decay=0.0)
        schedule = pipeline.schedule(optimizer, 10, 1.0)
        rates = []
        for _ in range(6):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
        assert (rates[5] == 1.0) == (name == "constant")


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        (Recipe(augment=Use(use="flipp")), "did you mean 'flip'"),
        (Recipe(optimizer=Use(use="adamw", args={"lrr": 1})), "did you mean 'lr'"),
        (Recipe(transform=Use(use="scale")), "transform 'scale' failed.*by"),
        (Recipe(transform=Use(use="standardize", args={"mean": [0, 0], "std": 1})), "has 2 values"),
        (Recipe(transform=Use(use="standardize", args={"mean": 0, "std": 0})), "above 0"),
        (Recipe(augment=Use(use="flip")), "needs \\(B, H, W\\)"),
        (Recipe(loss=Use(use="tests.tasks.test_recipe:mean_loss")), "loss of each example"),
        (Recipe(collate=Use(use="tests.tasks.test_recipe:wrong_collate")), "float32"),
        (Recipe(optimizer=Use(use="tests.tasks.test_recipe:mean_loss")), "optimizer .* failed"),
        (Recipe(schedule=Use(use="builtins:print")), "must return a scheduler"),
    ],
)
def test_pieces_that_do_not_fit_are_refused_before_training(recipe: Recipe, says: str) -> None:
    with pytest.raises(InputError, match=says):
        check_model(MLP, (6,), 3, recipe)
