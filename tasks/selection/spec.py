"""What one selection is: a score, the end that is kept, a protocol and its shares."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, model_validator

from cluster.errors import InputError
from tasks.samplers.registry import SIZE, SLICE, SPLIT, protocol_info, takers
from tasks.spec import Spec, setting

_COLUMN = re.compile(r"(?P<score>[a-z0-9_]+?)(@[0-9.eE+-]+)?(_s[0-9]+)?\Z")

REFUSE, EXCLUDE, EXPLORE = "refuse", "exclude", "explore"
"""What may be done with examples that have no score."""

AUTO: Literal["auto"] = "auto"
"""Alpha of protocol exact that is found from the score table when the selection is made."""

HT, RAKED, UNWEIGHTED = "ht", "raked", "unweighted"
"""What the weights of a selection are of: the estimators of Horvitz & Thompson, calibrated to totals, or none."""

NOMINAL = "nominal"
"""What is said of inclusion probabilities where the seed leaves nothing to chance: budgets over members, and no design."""

MAX_STRATA = 10_000
MAX_COMPONENTS = 1_000
MAX_BINS = 100
# 1 - 0.9 is a little less than 0.1: shares are judged exactly where there are examples to count.
_ROUNDING = 1e-9

PARAMS = ("alpha", "gamma", "classes", "beta", "width", "strata", "weights", "floor", "features", "components",
          "bins", "margins", "bound")
"""The settings that not every protocol takes."""

LATER = ("features", "components", "bins", "margins", "bound")
"""Settings that came when keys had been given out: one that is not set is no part of an identity."""

PCA, PROXY = "pca", "proxy"
"""What the prototypes of a class are near each other in: components of the stored inputs, or features of the proxies."""

DEFAULTS: dict[str, Any] = {"strata": 50, "weights": "unit", "floor": 0.1, "features": PCA, "components": 40,
                            "bins": 10, "margins": "separate", "bound": 4.0}

# Classes have equal budgets in these, where nothing is said.
_BALANCED = ("band", "prototype_band")

NEEDED = {
    "gamma": " in [0, 1] (0 approximate, 1 exact)",
    "beta": ", the share dropped from the hard end, in [0, 1): 0 drops nothing, and small budgets want more",
    "width": ", the share of the examples that the band holds, in (0, 1]",
}


def check_alpha(value: Any) -> Any:
    """Return alpha as a number, or `auto` as it is. Raises InputError on anything else."""
    if value is None or value == AUTO:
        return value
    try:
        alpha = float(value)
    except (TypeError, ValueError, OverflowError):
        alpha = -1.0
    if not 0 <= alpha <= 1:
        raise InputError(
            f"alpha is {repr(value)[:80]}: it is the share of the budget spent on the top of the ranking; give a number in "
            "[0, 1], or auto (protocol exact)"
        )
    return alpha


Alpha = Annotated[float | Literal["auto"], BeforeValidator(check_alpha)]


def missing_note(policy: str, missing: int, n: int) -> str:
    """Return what a policy made of the examples without a score, in one clause; `n` is the population selected from."""
    if policy == EXCLUDE:
        return f"{missing:,} examples have no score and are excluded: n and the weights are of the other {n:,}"
    return f"{missing:,} of {n:,} examples have no score: never signal, they may be drawn by exploration, and weights are of all"


def default_direction(column: str) -> str | None:
    """Return the kept end of a built-in score's column (el2n, el2n@0.1, el2n_s0), or None where it is not one."""
    from tasks.scores.registry import SCORES

    match = _COLUMN.match(column)
    info = SCORES.get(match["score"]) if match else None
    return info.direction if info else None


def without_unset(identity: dict[str, Any]) -> dict[str, Any]:
    """Return an identity without the settings of LATER that are not set."""
    return {name: value for name, value in identity.items() if value is not None or name not in LATER}


class SelectionSpec(Spec):
    """Say how a selection is drawn. `keep` is the fraction KEPT, of the train split after validation is taken out."""

    score: str | None = setting(None, identity=True, doc="Column of the score table; null for protocols random and rs2.")
    protocol: str = setting(
        "exact", identity=True, doc="random, topk, exact, approximate, tempered, ccs, band, prototype_band, pps, raked, rs2 or "
        "rotate."
    )
    keep: float = setting(..., identity=True, gt=0, le=1, doc="Fraction kept, in (0, 1]; m = round(keep n) examples.")
    alpha: Alpha | None = setting(
        None, identity=True, doc="Share of the budget spent on the top of the ranking, in [0, 1]: exact, approximate, "
        "tempered, raked. auto, exact only: the share of least design variance, from the score table."
    )
    gamma: float | None = setting(
        None, identity=True, ge=0, le=1, doc="Power of the exploration weight W, tempered only: 0 approximate, 1 exact."
    )
    direction: str | None = setting(
        None, identity=True, pattern="^(high|low)$", doc="End of the score kept as signal, and for ccs and the bands the "
        "hard end, which is dropped. Default: the score's own; must be given for a column that is not a built-in score."
    )
    missing: str = setting(
        "refuse", identity=True, pattern="^(refuse|exclude|explore)$", doc="What is done with examples without a score: "
        "refuse them, exclude them from the population, or leave them to exploration."
    )
    classes: str | None = setting(
        None, identity=True, pattern="^(proportional|balanced)$", doc="Budgets of the classes: proportional to them, or "
        "equal. Default: no such budgets; balanced for band and prototype_band."
    )
    beta: float | None = setting(
        None, identity=True, ge=0, lt=1, doc="Share of the examples dropped from the hard end of the ranking: ccs, band, "
        "prototype_band."
    )
    width: float | None = setting(
        None, identity=True, gt=0, le=1, doc="Share of the examples, below the dropped, that band and prototype_band "
        "draw from."
    )
    strata: int | None = setting(None, identity=True, ge=1, le=MAX_STRATA, doc="Strata of ccs. Default: 50.")
    weights: str | None = setting(
        None, identity=True, pattern="^(unit|ht)$", doc="Weights of ccs: unit, as the paper trains (the default), or ht, "
        "unbiased for the examples that are not dropped."
    )
    floor: float | None = setting(
        None, identity=True, ge=0, le=1, doc="Share of the sizes of pps that is spread uniformly. Default: 0.1."
    )
    features: str | None = setting(
        None, identity=True, pattern="^(pca|proxy)$", doc="What prototype_band clusters: pca, components of the stored inputs "
        "(the default), or proxy, the penultimate features of the proxies at their last checkpoint."
    )
    components: int | None = setting(
        None, identity=True, ge=1, le=MAX_COMPONENTS, doc="Principal components of the features of prototype_band. Default: 40."
    )
    bins: int | None = setting(
        None, identity=True, ge=1, le=MAX_BINS, doc="Bins of the score, at most, whose totals the weights of raked meet. "
        "Default: 10."
    )
    margins: str | None = setting(
        None, identity=True, pattern="^(separate|crossed)$", doc="Totals that the weights of raked meet: of classes and of bins "
        "separately (the default), or of bins crossed with classes."
    )
    bound: float | None = setting(
        None, identity=True, gt=1, le=1e6, doc="Greatest factor, up or down, by which raked changes a design weight. Default: 4."
    )

    @model_validator(mode="after")
    def _check(self) -> SelectionSpec:
        self._check_params()
        if self.protocol in ("exact", "raked") and self.alpha == 1 and self.keep < 1:
            raise InputError(
                f"protocol {self.protocol} with alpha 1: no exploration is left, so the examples below the threshold have "
                "inclusion probability 0 and no weight makes the estimate unbiased; use alpha < 1, or topk"
            )
        if self.protocol == "rotate" and self.alpha == 1:
            raise InputError("protocol rotate with alpha 1: no exploration is left to draw anew; use alpha < 1, or topk")
        if not protocol_info(self.protocol).ranks:
            if self.score is not None:
                raise InputError(f"protocol {self.protocol} reads no score (got {self.score!r}); leave score out")
            if self.direction is not None:
                raise InputError(f"protocol {self.protocol} has no kept end; leave direction out")
        elif self.score is None:
            raise InputError(f"protocol {self.protocol} needs a score: the column that ranks the examples; give score")
        elif self.kept_end is None:
            raise InputError(
                f"score {self.score!r} is not built in, so the end that is kept is not known; give direction: high, low"
            )
        self._check_slice()
        self._check_auto()
        if self.draws == SIZE and self.kept_end != "high":
            raise InputError(
                f"protocol pps with {self.score!r}, whose low end is kept: sizes grow with inclusion; map the score by a "
                "decreasing function that is never negative (the greatest less the score), and give that with direction high"
            )
        if self.draws != SPLIT and self.missing == EXPLORE:
            raise InputError(
                f"protocol {self.protocol} with missing: explore: an example without a score has no place in it; set missing "
                "to exclude or refuse, or use random, exact, approximate or tempered"
            )
        return self

    def _check_params(self) -> None:
        info = protocol_info(self.protocol)
        if "alpha" in info.params:
            if self.alpha is None:
                raise InputError(f"protocol {self.protocol} needs alpha, the share of signal in [0, 1]; give alpha (--alpha)")
        elif info.signal_share is not None and self.alpha not in (None, info.signal_share):
            raise InputError(
                f"protocol {self.protocol} with alpha {self.alpha}: its alpha is always {info.signal_share:g}; leave "
                "alpha out, or use exact, approximate or tempered"
            )
        for name in PARAMS:
            value = getattr(self, name)
            if name not in info.params and value is not None and not (name == "alpha" and value == info.signal_share):
                raise InputError(
                    f"protocol {self.protocol} takes no {name} (got {value}); leave it out, or use {', '.join(takers(name))}"
                )
            if name in info.params and value is None and name in NEEDED:
                raise InputError(f"protocol {self.protocol} needs {name}{NEEDED[name]}; give {name}")

    def _check_slice(self) -> None:
        if self.draws != SLICE or self.beta is None:
            return
        if self.width is not None and self.beta + self.width > 1 + _ROUNDING:
            raise InputError(
                f"protocol {self.protocol} with beta {self.beta:g} and width {self.width:g}: together they are at most 1, the "
                f"whole ranking; give a width of at most {1 - self.beta:g}"
            )
        room = 1 - self.beta if self.width is None else self.width
        if self.keep > room + _ROUNDING:
            raise InputError(
                f"protocol {self.protocol} keeps {self.keep:g} of the examples, and only {room:g} of them are left to draw "
                f"from; lower keep{'' if self.width is None else ', raise width'}, or lower beta"
            )

    def _check_auto(self) -> None:
        if self.alpha != AUTO:
            return
        if protocol_info(self.protocol).rotates:
            raise InputError(
                f"protocol {self.protocol} with alpha auto: the variance that it makes least is that of one fixed subset, and "
                f"{self.protocol} draws anew every epoch; give alpha as a number, or use exact"
            )
        if self.protocol != "exact":
            raise InputError(
                f"protocol {self.protocol} with alpha auto: the variance that it makes least is that of an unbiased design, and "
                f"{self.protocol} is biased; give alpha as a number, or use exact"
            )
        if self.classes is not None:
            raise InputError(f"alpha auto with classes: {self.classes}: it is one share for one ranking; leave classes out")
        if self.missing == EXPLORE:
            raise InputError(
                "alpha auto with missing: explore: an example without a score has no gradient norm, from which alpha follows; "
                "set missing to exclude or refuse, or give alpha as a number"
            )

    @property
    def draws(self) -> str:
        """Return how the protocol draws: SPLIT, SLICE or SIZE of samplers/registry.py."""
        return protocol_info(self.protocol).draws

    @property
    def kept_end(self) -> str | None:
        """Return the end that is kept: `direction`, or the score's own. None for random."""
        if self.direction is not None or self.score is None:
            return self.direction
        return default_direction(self.score)

    @property
    def signal_share(self) -> float | None:
        """Return alpha as it applies: 0 for random, 1 for topk, None where there is no such share.

        Raises InputError on alpha auto, which is a number only once a score table has been read.
        """
        info = protocol_info(self.protocol)
        if self.alpha == AUTO:
            raise InputError("alpha auto is found from a score table, and none was read here; give alpha as a number")
        return self.alpha if "alpha" in info.params else info.signal_share

    def params(self) -> dict[str, Any]:
        """Return the protocol's settings as they apply, defaults filled in, alpha left out."""
        names = [name for name in protocol_info(self.protocol).params if name != "alpha"]
        given = {name: getattr(self, name) for name in names}
        return {name: self._default(name) if value is None else value for name, value in given.items()}

    def _default(self, name: str) -> Any:
        return "balanced" if self.protocol in _BALANCED and name == "classes" else DEFAULTS.get(name)

    def identity(self) -> dict[str, Any]:
        """Return the fields that change the result, without those of LATER that are not set."""
        return without_unset(super().identity())

    def effective(self) -> dict[str, Any]:
        """Return the settings as they apply, defaults filled in: what a selection's key is made of."""
        missing = self.missing if protocol_info(self.protocol).ranks else None
        alpha = AUTO if self.alpha == AUTO else self.signal_share
        own = {"alpha": alpha, "direction": self.kept_end, "missing": missing}
        return {**self.identity(), **self.params(), **own}
