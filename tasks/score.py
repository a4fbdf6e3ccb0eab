"""The score stage: every train example scored by every proxy, one Parquet part a shard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import field_validator, model_validator

from cluster.errors import InputError, ItemsError
from cluster.fingerprint import stage_key
from tasks.scores.registry import SCORES, score_info
from tasks.spec import Numerics, Resources, Spec, setting
from tasks.versions import minor_version

if TYPE_CHECKING:
    from cluster.record import Seal
    from cluster.storage import Store
    from tasks.pool import Pool
    from tasks.proxy import ProxySpec
    from tasks.sources.spec import DataSpec

VERSION = 4
NEVER_LEARNED = "never_learned"


class ScoreUse(Spec):
    """Ask for a score, at a checkpoint of the proxies. The plain text `el2n` or `el2n@0.1` means the same."""

    name: str = setting(..., identity=True, doc=f"One of: {', '.join(SCORES)}.")
    at: float = setting(
        1.0, identity=True, gt=0, le=1, doc="Fraction of proxy training at which it is taken; 1 is its end."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        name, mark, at = value.partition("@")
        return {"name": name, "at": at} if mark else {"name": name}

    @model_validator(mode="after")
    def _known(self) -> ScoreUse:
        info = score_info(self.name)
        if self.at != 1 and not info.by_batch:
            why = "the dynamics of the whole training" if info.needs == "dynamics" else "no proxy"
            raise InputError(f"score {self.name!r} has at={self.at}: it reads {why}, so leave `at` out")
        return self


class ScoreSpec(Spec):
    """Say which scores are computed, and on what arithmetic."""

    scores: tuple[ScoreUse, ...] = setting(..., identity=True, min_length=1, doc="The scores: names, or {name, at}.")
    forward_rows: int = setting(
        256, identity=True, ge=16, doc="Rows of every forward pass; short batches are padded, so that bytes agree."
    )
    numerics: Numerics = setting(Numerics(), identity=True, doc="Device, autocast and threads of scoring.")
    max_bad_fraction: float = setting(
        0.001, identity=False, ge=0, lt=1, doc="Share of the train examples that may have no score and go to the quarantine."
    )
    resources: Resources = setting(Resources(), identity=False, doc="How the stage is run.")

    @field_validator("scores", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | dict) else value

    @model_validator(mode="after")
    def _distinct(self) -> ScoreSpec:
        names = [column_name(use) for use in self.scores]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InputError(f"scores lists {', '.join(twice)} more than once; each column has one score")
        return self


def column_name(use: ScoreUse) -> str:
    """Return the column of a score: its name, and its checkpoint where that is not the last, as in `el2n@0.1`."""
    return use.name if use.at == 1 else f"{use.name}@{use.at:g}"


def checkpoints_needed(spec: ScoreSpec) -> tuple[float, ...]:
    """Return the fractions of proxy training at which a checkpoint is kept: ascending, 1.0 always among them."""
    return tuple(sorted({1.0, *(use.at for use in spec.scores)}))


def needs_proxies(spec: ScoreSpec) -> bool:
    """Return whether any score reads a proxy."""
    return any(score_info(use.name).needs != "nothing" for use in spec.scores)


def score_columns(spec: ScoreSpec, proxies: int) -> dict[str, str | None]:
    """Return every column of the score table in order, each with the end that is kept (null: not for ranking).

    For a score `c` of proxies: `c` (their mean), `c_std` (ddof 1; 0 with one proxy), `c_s0`, `c_s1`... in the order of
    the proxies; `never_learned` (fraction of proxies) beside forgetting. `random` has one column: it has no proxies.
    """
    out: dict[str, str | None] = {}
    for use in spec.scores:
        info, column = score_info(use.name), column_name(use)
        out[column] = info.direction
        if info.needs == "nothing":
            continue
        out[f"{column}_std"] = None
        out.update({f"{column}_s{number}": info.direction for number in range(proxies)})
        if use.name == "forgetting":
            out[NEVER_LEARNED] = None
    return out


def scorer_key(
    spec: ScoreSpec,
    proxy: ProxySpec,
    proxy_keys: list[str],
    *,
    code: str,
    seed: int,
    data: DataSpec,
    index_key: str,
) -> str:
    """Return the key of a scorer: everything the rows and scores of a shard depend on but the shard.

    `code` is the digest of user code, `seed` the run's root seed, which only the score `random` reads. Which rows of a
    shard are train rows is a matter of the data specification, so its identity is part; the index as a whole is part
    only where `data.limit` makes a shard's train rows depend on the other shards.
    """
    definitions = {use.name: score_info(use.name).version for use in spec.scores}
    rows = {name: value for name, value in data.identity().items() if name != "shard_rows"}
    if data.limit is not None:
        rows["index"] = index_key
    identity: dict[str, Any] = {**spec.identity(), "definitions": definitions, "rows": rows}
    digests: dict[str, Any] = {}
    if any(use.name == "random" for use in spec.scores):
        identity["seed"] = seed
    if needs_proxies(spec):
        identity["model"] = proxy.model.identity()
        # These two of the recipe are on every forward pass of a score; the rest of it is in the proxies' keys.
        recipe = proxy.recipe.identity()
        identity["transform"], identity["collate"] = recipe["transform"], recipe["collate"]
        digests = {"code": code, "torch": minor_version("torch")}
    return stage_key("scorer", VERSION, identity, proxy_keys if needs_proxies(spec) else [], digests)


def score_key(scorer: str, index_key: str) -> str:
    """Return the key of the score stage: a scorer applied to the shards of one index."""
    return stage_key("score", VERSION, {}, [scorer, index_key])


@dataclass(frozen=True)
class ScoreInputs:
    """Hold what the score stage reads. `proxies` are in the order of their numbers; empty where no score needs one."""

    data: DataSpec
    index: Seal
    proxy: ProxySpec
    proxies: tuple[Seal, ...] | list[Seal]
    code: str
    seed: int


def over_budget(
    spec: ScoreSpec, num_train: int, causes: Mapping[str, int], examples: Mapping[str, Sequence[str]], where: str = ""
) -> ItemsError:
    """Return the error of a stage in which more train examples have no score than `spec.max_bad_fraction` allows.

    With `where`, causes are those of that place alone.
    """
    from tasks.quarantine import allowed_rows, causes_table

    return ItemsError(
        f"{f'{where}: at least ' if where else ''}{sum(causes.values())} of {num_train} train examples have no score, and "
        f"score.max_bad_fraction {spec.max_bad_fraction:g} allows {allowed_rows(spec.max_bad_fraction, num_train)}; look at "
        "these examples, or at a proxy that diverged (lower its lr), or raise score.max_bad_fraction to leave them out; parts "
        f"that are committed stay:{causes_table(causes, examples)}"
    )


def check_budget(spec: ScoreSpec, num_train: int, seal: Seal, store: Store) -> None:
    """Raise ItemsError where a finished score stage left out more examples than this specification allows."""
    from tasks.quarantine import allowed_rows, left_out, read_examples, tables_of

    fact = left_out(seal)
    if fact["rows"] > allowed_rows(spec.max_bad_fraction, num_train):
        raise over_budget(spec, num_train, fact["causes"], read_examples(store, tables_of(fact)))


def score_stage(spec: ScoreSpec, inputs: ScoreInputs, store: Store, pool: Pool) -> Seal:
    """Score the train rows of every shard and return the seal.

    Each part holds the rows of its shard in row order; parts already there are kept. Examples whose scores are not
    finite, or on which the model raises, go to the quarantine, and their neighbours are scored as if they were not there;
    `seal.meta` counts them under quarantine {rows, causes, parts}. Raises ItemsError with a table of causes when they are
    more than `spec.max_bad_fraction`; InputError when the model cannot give a score asked for.
    """
    from tasks.score_worker import run_score_stage

    return run_score_stage(spec, inputs, store, pool)
