"""The built-in models, by short name. Import paths only: nothing heavy is imported until one is built."""

from __future__ import annotations

BUILTIN_MODELS = {
    "mlp": "tasks.models.mlp:MLP",
    "cnn": "tasks.models.cnn:CNN",
    "cnn1d": "tasks.models.cnn1d:CNN1d",
    "resnet18": "tasks.models.resnet:ResNet18",
}
"""Short name to import path. Each takes (input_shape, num_classes, **args)."""
