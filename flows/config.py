"""The root configuration: what a run is, read from YAML, checked whole before anything starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError, field_validator, model_validator

from cluster.errors import InputError
from cluster.fingerprint import canonical_json
from cluster.redaction import scrub
from flows.config_problems import first_problem, refuse_secrets
from flows.config_text import check_size, expand, override, read_yaml, refuse_controls
from tasks import recipes
from tasks.imports import nearest
from tasks.models import BUILTIN_MODELS
from tasks.policy.spec import PolicySpec
from tasks.proxy import ProxySpec
from tasks.score import ScoreSpec, needs_proxies, score_columns
from tasks.selection.cross_fitting import folds_of
from tasks.selection.spec import AUTO, EXCLUDE, PARAMS, PROXY, Alpha, SelectionSpec, without_unset
from tasks.shift.spec import ShiftSpec
from tasks.sources.spec import DataSpec
from tasks.spec import Recipe, Resources, Spec, Use, setting
from tasks.train import TrainSpec

MAX_BYTES = 2**20
MAX_UNITS = 100_000


def _as_list(value: Any) -> Any:
    """Return a fraction alone as a list of one."""
    return [value] if isinstance(value, int | float | str) else value


NOT_SELECTION = ("name", "keeps")
"""The fields of an arm that are none of its selections."""


class ArmSpec(Spec):
    """Describe one arm: a selection to make at every `keep`, or at some of them, and to train on."""

    name: str | None = setting(None, identity=True, doc="Name in the results. Default: protocol, score and shares.")
    score: str | None = setting(None, identity=True, doc="Column of the score table that ranks.")
    protocol: str = setting(
        "exact", identity=True, doc="topk, exact, approximate, tempered, ccs, band, prototype_band, pps, raked, rs2 or "
        "rotate; random is always there, and with `classes` an arm beside it."
    )
    alpha: Alpha | None = setting(
        None, identity=True, doc="Share of the budget spent on signal, in [0, 1]; auto, exact only: that of least variance."
    )
    gamma: float | None = setting(None, identity=True, doc="Power of the exploration weight; tempered only.")
    direction: str | None = setting(None, identity=True, doc="Kept end, high or low. Default: the score's own.")
    classes: str | None = setting(None, identity=True, doc="Budgets of the classes: proportional or balanced.")
    beta: float | None = setting(None, identity=True, doc="Share dropped from the hard end; ccs, band, prototype_band.")
    width: float | None = setting(None, identity=True, doc="Share that the band holds; band, prototype_band.")
    features: str | None = setting(None, identity=True, doc="pca or proxy; prototype_band only. Default: pca.")
    components: int | None = setting(None, identity=True, doc="Components of the features; prototype_band only. Default: 40.")
    strata: int | None = setting(None, identity=True, doc="Strata of the score's range; ccs only. Default: 50.")
    weights: str | None = setting(None, identity=True, doc="unit or ht; ccs only. Default: unit.")
    floor: float | None = setting(None, identity=True, doc="Share of the sizes spread uniformly; pps only. Default: 0.1.")
    bins: int | None = setting(None, identity=True, doc="Bins of the score, at most; raked only. Default: 10.")
    margins: str | None = setting(None, identity=True, doc="separate or crossed; raked only. Default: separate.")
    bound: float | None = setting(None, identity=True, doc="Greatest change of a weight; raked only. Default: 4.")
    missing: str = setting(EXCLUDE, identity=True, doc="Examples without a score. Default: that of `select`.")
    keeps: tuple[float, ...] | None = setting(
        None, identity=True, min_length=1, doc="Those of select.keep at which the arm is made. Default: all."
    )

    @field_validator("keeps", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return _as_list(value)

    def identity(self) -> dict[str, Any]:
        """Return the fields that change the result, without `keeps` and those of LATER where they are not set."""
        own = without_unset(super().identity())
        return own if self.keeps is not None else {name: value for name, value in own.items() if name != "keeps"}

    def at(self, keep: float) -> SelectionSpec:
        """Return the selection of this arm at one keep."""
        settings = {name: getattr(self, name) for name in type(self).model_fields if name not in NOT_SELECTION}
        return SelectionSpec(keep=keep, **settings)

    @property
    def shown_protocol(self) -> str:
        """Return the protocol as results name it: `random` is the baseline alone, a draw with class budgets says them."""
        return f"random, {self.classes}" if self.protocol == "random" and self.classes is not None else self.protocol

    @property
    def label(self) -> str:
        """Return the name of the arm in every result."""
        if self.name:
            return self.name
        words = [self.protocol, self.score or ""]
        if self.protocol not in ("topk", "random") and self.alpha is not None:
            words.append(f"alpha={self.alpha if self.alpha == AUTO else format(self.alpha, 'g')}")
        for name in PARAMS[1:]:
            value = getattr(self, name)
            if value is not None:
                words.append(f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}")
        if self.direction is not None:
            words.append(self.direction)
        return " ".join(word for word in words if word)


RANDOM_ARM = ArmSpec(name="random", protocol="random")
SOFT, OWN = "random, soft labels", "full, own schedule"


class SelectSpec(Spec):
    """Say which subsets are selected: the arms at each keep, and random beside them."""

    keep: tuple[float, ...] = setting(
        ..., identity=True, min_length=1, doc="Fraction kept of the train split, in (0, 1]: a number or a list."
    )
    arms: tuple[ArmSpec, ...] = setting((), identity=True, doc="The arms beside random; `policy` finds one by itself.")
    missing: str = setting(
        EXCLUDE, identity=True, pattern="^(refuse|exclude|explore)$", doc="What is done with examples that the score stage "
        "quarantined: refuse to select, exclude them from the population, or leave them to exploration."
    )
    resources: Resources = setting(Resources(), identity=False, doc="How select and subset are run.")

    @model_validator(mode="before")
    @classmethod
    def _missing_of_arms(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not isinstance(value.get("arms"), list | tuple):
            return value
        policy = value.get("missing", EXCLUDE)
        arms = [{"missing": policy, **arm} if isinstance(arm, dict) else arm for arm in value["arms"]]
        return {**value, "arms": arms}

    @field_validator("keep", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise InputError(f"select.keep is {value}: it is the fraction kept; give a number in (0, 1]")
        return _as_list(value)

    @model_validator(mode="after")
    def _check(self) -> SelectSpec:
        for keep in self.keep:
            if not 0 < keep <= 1:
                raise InputError(f"select.keep is {keep:g}: it is the fraction kept; give a number in (0, 1]")
            for arm in self.arms_at(keep):
                arm.at(keep)
        if any(arm.protocol == RANDOM_ARM.protocol and arm.classes is None for arm in self.arms):
            raise InputError(
                "select.arms has an arm of protocol random, which is always there, and is what the others are compared with; "
                "leave it out, or give it budgets of the classes: classes, proportional or balanced"
            )
        if len(set(self.keep)) != len(self.keep):
            raise InputError(f"select.keep lists a fraction twice: {list(self.keep)}; each keep once")
        self._check_keeps()
        labels = [arm.label for arm in self.arms] + ["random", "full", SOFT, OWN]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        if twice:
            raise InputError(
                f"select.arms has the name {twice[0]!r} twice (random and full are always taken); give each arm its own name"
            )
        return self

    def _check_keeps(self) -> None:
        """Raise InputError where an arm is at no keep of the run, or a keep has no arm of those that there are."""
        for arm in self.arms:
            for keep in arm.keeps or ():
                if keep not in self.keep:
                    raise InputError(
                        f"arm {arm.label!r} has keep {keep:g} in its keeps, which select.keep has not: {list(self.keep)}; "
                        "an arm is made at keeps of the run"
                    )
        for keep in self.keep:
            if self.arms and not self.arms_at(keep):
                raise InputError(f"select.keep {keep:g} has no arm beside random; leave this keep out, or give it an arm")

    def arms_at(self, keep: float) -> list[ArmSpec]:
        """Return the arms that are made at one keep, without random."""
        return [arm for arm in self.arms if arm.keeps is None or keep in arm.keeps]


class ReportSpec(Spec):
    """Say how arms are judged."""

    margin_points: float = setting(
        0.5, identity=True, gt=0, doc="Margin of equivalence, in percentage points of test accuracy."
    )


def check_names(stage: str, model: Use, recipe: Recipe) -> None:
    """Raise InputError when a model or a piece of a recipe is neither built in nor an import path."""
    named: list[tuple[str, Use | None, dict[str, str]]] = [
        ("model", model, BUILTIN_MODELS),
        ("transform", recipe.transform, recipes.TRANSFORMS),
        ("augment", recipe.augment, recipes.AUGMENTS),
        ("loss", recipe.loss, recipes.LOSSES),
        ("optimizer", recipe.optimizer, recipes.OPTIMIZERS),
        ("schedule", recipe.schedule, recipes.SCHEDULES),
        ("collate", recipe.collate, recipes.COLLATES),
    ]
    for what, use, known in named:
        if use is not None and ":" not in use.use and use.use not in known:
            raise InputError(
                f"{stage}: {what} {use.use!r} is not built in; {nearest(use.use, list(known))}, "
                "or give package.module:callable"
            )


class RunConfig(Spec):
    """Hold a whole run."""

    name: str = setting(..., identity=True, pattern=r"^[A-Za-z0-9][A-Za-z0-9_]{0,40}$", doc="Name of the run.")
    seed: int = setting(0, identity=True, ge=0, lt=2**63, doc="Root seed; every random choice derives from it.")
    code: tuple[str, ...] = setting((), identity=False, doc="Folders of your code, put on the import path and shipped.")
    code_version: str | None = setting(
        None, identity=True, doc="Stands for your code in the keys, instead of the digest of what it imports."
    )
    data: DataSpec = setting(..., identity=True, doc="The dataset.")
    proxy: ProxySpec | None = setting(None, identity=True, doc="The proxies; left out where `scores` is given.")
    score: ScoreSpec | None = setting(None, identity=True, doc="The scores; left out where `scores` is given.")
    scores: str | None = setting(None, identity=False, doc="Parquet file, folder or URI of your own scores.")
    scores_id_column: str = setting("example_id", identity=True, doc="Id column of `scores`.")
    sweep: dict[str, tuple[Any, ...]] | None = setting(
        None, identity=True, doc="A grid {parameter of an arm: values}, in place of `select.arms`."
    )
    policy: PolicySpec | None = setting(
        None, identity=True, doc="auto, or a section: a race that finds the arm by itself, in place of `select.arms`."
    )
    select: SelectSpec = setting(..., identity=True, doc="The selections.")
    train: TrainSpec = setting(..., identity=True, doc="The final trainings.")
    shift: ShiftSpec | None = setting(
        ShiftSpec(), identity=True, doc="What each selection does to the distribution, measured before any training, on "
        "replicate 0 of every arm and keep; false for none. A race measures none."
    )
    report: ReportSpec = setting(ReportSpec(), identity=True, doc="How arms are judged.")

    @field_validator("shift", mode="before")
    @classmethod
    def _on_or_off(cls, value: Any) -> Any:
        return ({} if value else None) if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        if self.scores is None and (self.score is None or self.proxy is None):
            raise InputError("the configuration has no scores: give `proxy` and `score`, or your own as `scores: URI`")
        if self.scores is not None and (self.score is not None or self.proxy is not None):
            raise InputError("`scores` replaces `proxy` and `score`: leave these two out, or leave `scores` out")
        from flows.race_plan import check_policy, most_units

        check_policy(self)
        units = sum(len(self.select.arms_at(keep)) + 4 for keep in self.select.keep) * self.train.replicates
        units = units if self.policy is None else most_units(self)
        units += self.proxy.seeds if self.proxy is not None else 0
        if units > MAX_UNITS:
            raise InputError(
                f"the configuration asks for {units} proxies and trainings, and a run has at most {MAX_UNITS}; fewer seeds, "
                "keeps, arms or replicates"
            )
        for arm in self.select.arms:
            if arm.features == PROXY:
                self._check_proxies(arm)
        if self.shift is not None:
            self.shift.check(self.score, self.score is not None and needs_proxies(self.score))
        check_names("train", self.train.model, self.train.recipe)
        if self.proxy is not None:
            check_names("proxy", self.proxy.model, self.proxy.recipe)
        if self.score is not None and self.proxy is not None:
            known = [name for name, end in score_columns(self.score, self.proxy.seeds).items() if end is not None]
            for arm in self.select.arms:
                if arm.score is not None and arm.score not in known:
                    raise InputError(
                        f"arm {arm.label!r} ranks by {arm.score!r}, which score.scores does not compute; "
                        f"{nearest(arm.score, known)}"
                    )
                if arm.alpha == AUTO and arm.score is not None:
                    # Raises where the table will have no gradient norm.
                    folds_of(arm.score, known)
        return self

    def identity(self) -> dict[str, Any]:
        """Return the fields that change the result; `policy` only where it is given, as runs without it were named before."""
        own = super().identity()
        return own if self.policy is not None else {name: value for name, value in own.items() if name != "policy"}

    def _check_proxies(self, arm: ArmSpec) -> None:
        """Raise InputError where the select stage cannot read the features of proxies."""
        if self.score is None or not needs_proxies(self.score):
            raise InputError(
                f"arm {arm.label!r} has features: proxy, and no score here needs a proxy, so none is trained; use features: pca"
            )
        if self.score.numerics.device == "cuda" and not self.select.resources.gpus:
            raise InputError(
                f"arm {arm.label!r} has features: proxy, which the select stage computes as scores are, on "
                "score.numerics.device cuda; give select.resources.gpus, or use features: pca"
            )

    def arms_at(self, keep: float) -> list[ArmSpec]:
        """Return random, then the configured arms of one keep."""
        return [RANDOM_ARM, *self.select.arms_at(keep)]


def load_config(path: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML configuration, apply KEY=VALUE overrides, and check all of it. Raises InputError with one message."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise InputError(f"configuration {path} has more than {MAX_BYTES} bytes: is it a configuration?")
        text = data.decode()
    except (OSError, ValueError) as error:
        raise InputError(f"configuration {path!r} cannot be read ({error}); give the path of a YAML file") from error
    body = read_yaml(text, f"configuration {path}")
    if not isinstance(body, dict):
        raise InputError(f"configuration {path} holds a {type(body).__name__}; its top level is a mapping of sections")
    for text in overrides:
        override(body, text)
    check_size(body, path)
    config = parse_config(expand(body, path), path)
    # Not where run.json is read: a run that was made is one to verify, resume and show.
    refuse_controls(config.model_dump(), f"configuration {path}")
    return config


def parse_config(body: Mapping[str, Any], where: str = "configuration") -> RunConfig:
    """Return the checked configuration. Raises InputError naming the first wrong key and the nearest valid one."""
    if body.get("sweep") is not None:
        from flows.sweep import written_out

        body = written_out(body)
    try:
        config = RunConfig.model_validate(body)
    except ValidationError as error:
        raise InputError(f"{where}: {scrub(first_problem(error, RunConfig))}") from None
    except RecursionError as error:
        raise InputError(f"{where} is nested too deeply; a configuration has some five levels") from error
    settings = config.model_dump()
    # Dates, bytes and the like, which YAML knows and no key can hold.
    canonical_json(settings, where)
    refuse_secrets(settings, where)
    return _absolute(_shift_named(config))


def _shift_named(config: RunConfig) -> RunConfig:
    """Return the configuration with what `shift.features` leaves open said."""
    shift = config.shift
    if shift is None or shift.features is not None:
        return config
    proxy = config.proxy if config.score is not None and needs_proxies(config.score) else None
    return config.model_copy(update={"shift": shift.named(config.score, None if proxy is None else proxy.model)})


def _absolute(config: RunConfig) -> RunConfig:
    """Return the configuration with local paths made absolute: workers and later commands run elsewhere."""

    def place(path: str | None) -> str | None:
        return path if path is None or "://" in path else str(Path(path).absolute())

    changes: dict[str, Any] = {
        "code": tuple(str(Path(folder).absolute()) for folder in config.code),
        "scores": place(config.scores),
    }
    if config.data.source.use not in ("sklearn", "mnist1d"):
        changes["data"] = config.data.model_copy(
            update={"train": place(config.data.train), "test": place(config.data.test)}
        )
    return config.model_copy(update=changes)
