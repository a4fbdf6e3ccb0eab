"""The proxy stage: small models, each of its own seed, trained on the whole train split to produce scores."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import model_validator

from cluster.errors import InputError
from cluster.fingerprint import stage_key
from cluster.record import Seal
from tasks.budget import check_length, steps_of
from tasks.leasing import in_pool, share_units
from tasks.seeding import derive_seed
from tasks.spec import Numerics, Recipe, Resources, Spec, Use, setting
from tasks.versions import minor_version

if TYPE_CHECKING:
    from cluster.storage import Store
    from tasks.pool import Pool
    from tasks.proxy_worker import ProxyWorker
    from tasks.sources.spec import DataSpec

VERSION = 2


class ProxySpec(Spec):
    """Say which proxies are trained, and how. Exactly one of `steps` and `epochs` is given."""

    model: Use = setting(..., identity=True, doc="Model: mlp, cnn, cnn1d, resnet18, or package.module:callable.")
    seeds: int = setting(3, identity=True, ge=1, doc="Number of proxies, each with its own initialisation and order.")
    steps: int | None = setting(None, identity=True, ge=1, doc="Optimiser steps of a proxy.")
    epochs: float | None = setting(None, identity=True, gt=0, doc="Passes over the train split, instead of steps.")
    batch_size: int = setting(128, identity=True, ge=1, doc="Examples of a step.")
    lr: float = setting(3e-3, identity=True, gt=0, doc="Learning rate; the peak of the default one-cycle schedule.")
    weight_decay: float = setting(0.01, identity=True, ge=0, doc="Weight decay of the optimizer.")
    recipe: Recipe = setting(Recipe(), identity=True, doc="Transform, augment, loss, optimizer, schedule, collate.")
    numerics: Numerics = setting(Numerics(), identity=True, doc="Device, autocast and threads of training.")
    checkpoint_every_s: float = setting(
        15.0, identity=False, ge=0, doc="Least seconds between checkpoints to resume from; 0 writes one every epoch."
    )
    resources: Resources = setting(Resources(), identity=False, doc="How the stage is run.")

    @model_validator(mode="after")
    def _one_length(self) -> ProxySpec:
        check_length("proxy", self.steps, self.epochs)
        return self

    def steps_for(self, num_train: int) -> int:
        """Return the optimiser steps on `num_train` examples: `steps`, or ceil(epochs * batches of an epoch)."""
        return steps_of(self.steps, self.epochs, self.batch_size, num_train)


@dataclass(frozen=True)
class ProxyInputs:
    """Hold what the proxy stage reads: `checkpoints` are fractions of training in [0, 1], `seed` the root seed."""

    data: DataSpec
    index: Seal
    checkpoints: tuple[float, ...]
    code: str
    seed: int


@dataclass(frozen=True)
class ProxyItem:
    """Name one proxy to train: its number, key and seed."""

    number: int
    key: str
    seed: int

    def __str__(self) -> str:
        return f"proxy {self.number} ({self.key[:12]})"


def proxy_seed(seed: int, number: int) -> int:
    """Return the seed of proxy `number` under the root seed: another one for every proxy."""
    return derive_seed("proxy", seed, number)


def proxy_key(
    spec: ProxySpec, number: int, index_key: str, checkpoints: tuple[float, ...], code: str, seed: int
) -> str:
    """Return the key of one proxy. How many proxies there are is no part of it: more seeds train only the new ones.

    `code` is the digest of user code, `seed` the root seed of the run.
    """
    identity = {name: value for name, value in spec.identity().items() if name != "seeds"}
    identity.update(number=number, seed=seed, checkpoints=_checked(checkpoints))
    digests = {"code": code, "torch": minor_version("torch")}
    return stage_key("proxy", VERSION, identity, [index_key], digests)


def _checked(checkpoints: tuple[float, ...]) -> list[float]:
    bad = [at for at in checkpoints if not 0 <= at <= 1]
    if bad:
        raise InputError(f"proxy checkpoints at {bad}: they are fractions of training; give numbers in [0, 1]")
    return sorted({1.0, *checkpoints})


def checkpoint_steps(checkpoints: tuple[float, ...], steps: int) -> dict[float, int]:
    """Return the step at which each checkpoint is taken, ascending; 1.0 is always among them.

    A fraction above 0 means at least one step; 0 is the initialisation.
    """
    return {at: (0 if at == 0 else max(1, round(at * steps))) for at in _checked(checkpoints)}


def checkpoint_part(at: float) -> str:
    """Return the part name of the checkpoint at a fraction of training, as in checkpoint-10.pt."""
    return f"checkpoint-{100 * at:.10g}.pt"


def proxy_stage(spec: ProxySpec, inputs: ProxyInputs, store: Store, pool: Pool) -> list[Seal]:
    """Train the proxies that are not there yet and return the seals of all, in the order of their numbers.

    Each proxy is one unit with the parts dynamics.parquet (schemas.DYNAMICS, by ascending example_id) and one
    checkpoint-<percent>.pt for each fraction asked for. A proxy that was stopped goes on from its newest checkpoint;
    one that another process holds by its lease is waited for.
    """
    items: list[ProxyItem] = []
    for number in range(spec.seeds):
        key = proxy_key(spec, number, inputs.index.key, inputs.checkpoints, inputs.code, inputs.seed)
        items.append(ProxyItem(number, key, proxy_seed(inputs.seed, number)))
    do = in_pool("proxy", items, partial(_worker, spec, inputs, store), store, pool, spec.resources)
    seals = share_units("proxy", [item.key for item in items], store, do)
    return [seals[item.key] for item in items]


def _worker(spec: ProxySpec, inputs: ProxyInputs, store: Store) -> ProxyWorker:
    # torch takes 1.7 s to import: only workers need it.
    from tasks.proxy_worker import ProxyWorker

    return ProxyWorker(spec, inputs, store)


def load_checkpoint(store: Store, seal: Seal, at: float = 1.0) -> dict[str, Any]:
    """Return {"key", "step", "model": state dict of CPU tensors} of a proxy at a fraction of its training.

    Raises InputError where no such checkpoint was kept, CorruptError where it is not what its seal says.
    """
    from tasks.checkpoints import load_sealed

    return load_sealed(store, seal, at)
