"""How distribution shift is measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cluster.errors import InputError
from tasks.spec import Resources, Spec, Use, setting

if TYPE_CHECKING:
    from tasks.score import ScoreSpec

INPUTS, PROXY = "inputs", "proxy"
OF_FEATURES = ("features", "sample", "components", "cells", "pairs")
"""The settings that the features shared by all selections depend on."""


class ShiftSpec(Spec):
    """Say on how much each selection is compared with the full train split."""

    features: str | None = setting(
        None, identity=True, pattern="^(inputs|proxy)$", doc="proxy, what goes into the last layer of the first proxy at the end "
        "of its training; or inputs, as they are stored. Default: proxy where one of a built-in model is trained, else inputs."
    )
    sample: int = setting(
        10_000, identity=True, ge=100, le=1_000_000, doc="Examples of the train split, drawn by hash, that stand for it: about "
        "so many; and at most so many kept ones of a selection."
    )
    components: int = setting(40, identity=True, ge=2, le=1000, doc="Principal components; fewer where d is less.")
    cells: int = setting(200, identity=True, ge=1, le=10_000, doc="k-means cells; at most one for 20 examples of the sample.")
    bins: int = setting(20, identity=True, ge=2, le=10_000, doc="Bins of equal mass of the score.")
    pairs: int = setting(
        3_000, identity=True, ge=100, le=100_000, doc="Examples of the sample, and of the kept, whose distances are taken."
    )
    resources: Resources = setting(Resources(), identity=False, doc="How the stage is run.")

    def named(self, score: ScoreSpec | None, proxy: Use | None) -> ShiftSpec:
        """Return the same with `features` said, from the model of the proxies, None where none is trained.

        A model of the user's may have no linear last layer: its features are read only where they are asked for. On CUDA a
        worker takes the GPUs of the score stage where it was given none.
        """
        if self.features is not None:
            return self
        if score is None or proxy is None or ":" in proxy.use:
            return self.model_copy(update={"features": INPUTS})
        resources = self.resources
        if score.numerics.device == "cuda" and not resources.gpus:
            resources = resources.model_copy(update={"gpus": score.resources.gpus})
        return self.model_copy(update={"features": PROXY, "resources": resources})

    def feature_identity(self) -> dict[str, Any]:
        """Return the settings that the features depend on."""
        return {name: value for name, value in self.identity().items() if name in OF_FEATURES}

    def check(self, score: ScoreSpec | None, proxies: bool) -> None:
        """Raise InputError where the features of a proxy are asked for and cannot be read."""
        if self.features != PROXY:
            return
        if score is None or not proxies:
            raise InputError(
                "shift.features is proxy, and no score here needs a proxy, so none is trained; set shift.features to inputs"
            )
        if score.numerics.device == "cuda" and not self.resources.gpus:
            raise InputError(
                "shift.features is proxy, whose passes run on cuda as the score stage's do; give shift.resources.gpus, or set "
                "shift.features to inputs"
            )

    def measure_identity(self) -> dict[str, Any]:
        """Return the settings that only the figures of one selection depend on."""
        return {name: value for name, value in self.identity().items() if name not in OF_FEATURES}
