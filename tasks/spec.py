"""The base of every specification, and the small ones that several stages share."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from cluster.shape import check_shape


def setting(default: Any, *, doc: str, identity: bool, **rules: Any) -> Any:
    """Declare a field of a Spec: documented, and marked as part of the key (identity) or as how the work is run."""
    return Field(default, description=doc, json_schema_extra={"identity": identity}, **rules)


class Spec(BaseModel):
    """Hold settings that check themselves. Unknown fields are errors; values never change after construction."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _a_truth_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        # pydantic takes true for 1.
        if isinstance(value, bool) and _is_number(cls.model_fields[str(info.field_name)].annotation):
            raise ValueError(f"{str(value).lower()} is no number; write one")
        return value

    def identity(self) -> dict[str, Any]:
        """Return the fields that change the result, nested specs included, as plain values for a stage key."""
        out: dict[str, Any] = {}
        for name, info in type(self).model_fields.items():
            extra = info.json_schema_extra
            if not isinstance(extra, dict) or "identity" not in extra:
                raise TypeError(f"{type(self).__name__}.{name} is not marked as identity-bearing or not: use setting()")
            if extra["identity"]:
                out[name] = _plain(getattr(self, name))
        return out


def _is_number(annotation: Any) -> bool:
    """Return whether a number, and nothing that may be true or false, is asked for: `int | None`."""
    kinds = get_args(annotation) or (annotation,)
    return all(kind in (int, float, type(None)) for kind in kinds)


def _plain(value: Any) -> Any:
    if isinstance(value, Spec):
        return value.identity()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return value


class Use(Spec):
    """Name a callable: a built-in by its short name, or the user's as package.module:callable, with arguments."""

    use: str = setting(..., identity=True, doc="Built-in name, or package.module:callable found in `code`.")
    args: dict[str, Any] = setting({}, identity=True, doc="Keyword arguments of the callable.")

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        # `model: mlp` means `model: {use: mlp}`.
        return {"use": value} if isinstance(value, str) else value


class Recipe(Spec):
    """Say how a model is trained beyond its numbers; every field replaces a documented default."""

    transform: Use | None = setting(
        None, identity=True, doc="f(x: float32 tensor (B, ...), **args) -> tensor; on every batch, scoring included."
    )
    augment: Use | None = setting(
        None, identity=True, doc="f(x: tensor (B, ...), generator, **args) -> tensor; on training batches only."
    )
    loss: Use | None = setting(
        None, identity=True, doc="f(logits (B, K), targets (B,), **args) -> loss per example (B,). Default cross-entropy."
    )
    optimizer: Use | None = setting(
        None, identity=True, doc="f(parameters, lr=..., **args) -> torch optimizer. Default AdamW."
    )
    schedule: Use | None = setting(
        None, identity=True, doc="f(optimizer, steps=..., lr=..., **args) -> torch LR scheduler, stepped once a step."
        " Default one-cycle with peak lr."
    )
    collate: Use | None = setting(
        None, identity=True, doc="f(x: stored array (B, ...), **args) -> float32 array or tensor (B, ...). Default: cast."
    )


class Resources(Spec):
    """Say how a stage is run. Never part of a key."""

    workers: int | None = setting(None, identity=False, ge=1, doc="Workers at once; null fills the cluster.")
    cpus: float = setting(1.0, identity=False, gt=0, doc="CPU slots a worker takes.")
    gpus: float = setting(0.0, identity=False, ge=0, doc="GPUs a worker takes; a fraction must divide 1 evenly.")
    retries: int = setting(3, identity=False, ge=0, doc="Times an item is tried again after its worker or node died.")

    @model_validator(mode="after")
    def _schedulable(self) -> Resources:
        check_shape(self.cpus, self.gpus)
        return self


class Numerics(Spec):
    """Say on what arithmetic results were made; part of the keys of proxy, score and train."""

    device: str = setting("cpu", identity=True, pattern="^(cpu|cuda)$", doc="cpu or cuda.")
    autocast: str | None = setting(
        None, identity=True, pattern="^bfloat16$", doc="null for float32 throughout, or bfloat16 autocast (on cuda)."
    )
    threads: int = setting(1, identity=True, ge=1, doc="Intra-op threads a worker uses: last bits can depend on it.")
