"""What one selection is: a score, the end that is kept, a protocol and its shares."""

from __future__ import annotations

import re
from typing import Any

from pydantic import model_validator

from cluster.errors import InputError
from tasks.samplers.registry import protocol_info
from tasks.spec import Spec, setting

_COLUMN = re.compile(r"(?P<score>[a-z0-9_]+?)(@[0-9.eE+-]+)?(_s[0-9]+)?\Z")

REFUSE, EXCLUDE, EXPLORE = "refuse", "exclude", "explore"
"""What may be done with examples that have no score."""


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


class SelectionSpec(Spec):
    """Say how a selection is drawn. `keep` is the fraction KEPT, of the train split after validation is taken out."""

    score: str | None = setting(None, identity=True, doc="Column of the score table; null for protocol random.")
    protocol: str = setting("exact", identity=True, doc="random, topk, exact, approximate or tempered.")
    keep: float = setting(..., identity=True, gt=0, le=1, doc="Fraction kept, in (0, 1]; m = round(keep n) examples.")
    alpha: float | None = setting(
        None, identity=True, ge=0, le=1, doc="Share of the budget spent on the top of the ranking: exact, approximate, "
        "tempered."
    )
    gamma: float | None = setting(
        None, identity=True, ge=0, le=1, doc="Power of the exploration weight W, tempered only: 0 approximate, 1 exact."
    )
    direction: str | None = setting(
        None, identity=True, pattern="^(high|low)$", doc="End of the score kept as signal. Default: the score's own; "
        "must be given for a column that is not a built-in score."
    )
    missing: str = setting(
        "refuse", identity=True, pattern="^(refuse|exclude|explore)$", doc="What is done with examples without a score: "
        "refuse them, exclude them from the population, or leave them to exploration."
    )

    @model_validator(mode="after")
    def _check(self) -> SelectionSpec:
        info = protocol_info(self.protocol)
        if info.fixed_alpha is None:
            if self.alpha is None:
                raise InputError(f"protocol {self.protocol} needs alpha, the share of signal in [0, 1]; give alpha (--alpha)")
        elif self.alpha not in (None, info.fixed_alpha):
            raise InputError(
                f"protocol {self.protocol} with alpha {self.alpha:g}: its alpha is always {info.fixed_alpha:g}; leave "
                "alpha out, or use exact, approximate or tempered"
            )
        if info.takes_gamma and self.gamma is None:
            raise InputError(f"protocol {self.protocol} needs gamma in [0, 1] (0 approximate, 1 exact); give gamma")
        if not info.takes_gamma and self.gamma is not None:
            raise InputError(f"protocol {self.protocol} takes no gamma (got {self.gamma:g}); only tempered does")
        if self.protocol == "exact" and self.alpha == 1 and self.keep < 1:
            raise InputError(
                "protocol exact with alpha 1: no exploration is left, so the examples below the threshold have "
                "inclusion probability 0 and no weight makes the estimate unbiased; use alpha < 1, or topk"
            )
        if self.protocol == "random":
            if self.score is not None:
                raise InputError(f"protocol random reads no score (got {self.score!r}); leave score out")
            if self.direction is not None:
                raise InputError("protocol random has no kept end; leave direction out")
        elif self.score is None:
            raise InputError(f"protocol {self.protocol} needs a score: the column that ranks the examples; give score")
        elif self.kept_end is None:
            raise InputError(
                f"score {self.score!r} is not built in, so the end that is kept is not known; give direction: high, low"
            )
        return self

    @property
    def kept_end(self) -> str | None:
        """Return the end that is kept: `direction`, or the score's own. None for random."""
        if self.direction is not None or self.score is None:
            return self.direction
        return default_direction(self.score)

    @property
    def signal_share(self) -> float:
        """Return alpha as it applies: 0 for random, 1 for topk."""
        fixed = protocol_info(self.protocol).fixed_alpha
        if fixed is not None:
            return fixed
        assert self.alpha is not None
        return self.alpha

    def effective(self) -> dict[str, Any]:
        """Return the settings as they apply, defaults filled in: what a selection's key is made of."""
        missing = None if self.protocol == "random" else self.missing
        return {**self.identity(), "alpha": self.signal_share, "direction": self.kept_end, "missing": missing}
