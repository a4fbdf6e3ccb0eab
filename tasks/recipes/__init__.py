"""The built-in pieces of a recipe, by short name. Import paths only."""

from __future__ import annotations

TRANSFORMS = {"scale": "tasks.recipes.transforms:scale", "standardize": "tasks.recipes.transforms:standardize"}
AUGMENTS = {"flip": "tasks.recipes.augments:flip", "crop": "tasks.recipes.augments:crop"}
LOSSES = {"cross_entropy": "tasks.recipes.losses:cross_entropy"}
OPTIMIZERS = {"adamw": "tasks.recipes.optimizers:adamw", "sgd": "tasks.recipes.optimizers:sgd"}
SCHEDULES = {
    "onecycle": "tasks.recipes.schedules:onecycle",
    "constant": "tasks.recipes.schedules:constant",
    "cosine": "tasks.recipes.schedules:cosine",
}
COLLATES = {"cast": "tasks.recipes.collates:cast"}
