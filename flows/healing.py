"""Heal a run: compute damaged objects again beside the store, and put back those that are what their seal says."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from cluster.errors import InputError, SecateurError, StageError
from cluster.fingerprint import sha256
from cluster.record import Part, Seal, Unit
from cluster.scratch import owned_folder
from cluster.storage import Store
from flows.attempts import attempt_states
from flows.lineage import Lineage
from flows.loose import loose_objects, problem_of
from flows.overlay import OverlayStore
from flows.plan import Plan, make_plan, sealed
from flows.runs import make_report, recorded_stages, subset_units
from flows.verify import Damage, Findings, quarantine_parts
from tasks.pool import SerialPool


@dataclass(frozen=True)
class Healing:
    """Tell what became of one damaged object: put back, or why not."""

    damage: Damage
    healed: bool
    said: str


def refuse_running(store: Store, runs: Iterable[str], act: str) -> None:
    """Raise StageError where an attempt at one of the runs goes on: it reads what would be changed under it."""
    for run in runs:
        if any(attempt.state == "running" for attempt in attempt_states(store, run)):
            raise StageError(f"run {run} is running: {act} changes what it reads; stop it, or wait for its end")


def heal_run(lineage: Lineage, found: Findings, store: Store) -> list[Healing]:
    """Compute damaged objects again, in the order of the stages and in this process, and put back what matches.

    A part is put back only where its bytes are those its seal names. A damaged or lost seal vouches for nothing: it is
    made again with all of its parts, which must come out as they are there. Whatever cannot be healed stays as it was.
    What no seal vouches for yet is removed, for the next run to compute.
    """
    refuse_running(store, [lineage.run], "healing")
    out = remove_loose(lineage, found.damage, store)
    plan: Plan | None = None
    why = ""
    try:
        plan = make_plan(lineage.config).grown(store)
        if plan.run_name != lineage.run:
            why = f"data or code here are those of run {plan.run_name}"
    except InputError as error:
        why = f"data or code cannot be read: {error}"
    units = {(unit.stage, unit.key): unit for unit in lineage.units(store)}
    by_unit: dict[tuple[str, str], list[Damage]] = {}
    for damage in found.damage:
        if damage.loose:
            continue
        by_unit.setdefault((damage.stage, damage.key), []).append(damage)
    for node, unit in units.items():
        damages = by_unit.pop(node, None)
        if damages is None:
            continue
        if plan is None or why:
            out += [Healing(damage, False, f"it cannot be computed again: {why}") for damage in damages]
        elif node not in {(unit.stage, unit.key) for _, unit in plan.units(store)}:
            said = "it cannot be computed again: the torch here is not the one that its key names"
            out += [Healing(damage, False, said) for damage in damages]
        else:
            out += _heal_unit(plan, unit, damages, store)
    others = [damage for damages in by_unit.values() for damage in damages]
    return out + _heal_report(plan, lineage, others, out, store)


def remove_loose(lineage: Lineage, damages: Iterable[Damage], store: Store) -> list[Healing]:
    """Remove damaged objects that no seal vouches for. Each is looked at again: what is sound or sealed by now stays."""
    units = {(unit.stage, unit.key): unit for unit in lineage.units(store)}
    out = []
    # A part that names a lost quarantine before the quarantine itself: cut short, the rest is found again.
    for damage in sorted((one for one in damages if one.loose), key=lambda one: one.what != "part"):
        unit = units[damage.stage, damage.key]
        again = next((one for one in loose_objects(unit) if one.name == damage.name), None)
        if unit.seal() is not None or (again is not None and again.vouched):
            out.append(Healing(damage, False, "it was sealed meanwhile: verify again"))
        elif again is not None and again.obstacle:
            out.append(Healing(damage, False, f"it is {again.obstacle}, and not Secateur's to remove: move it away"))
        elif again is None or not problem_of(again)[0]:
            out.append(Healing(damage, True, "it is gone or sound by now: another run was here"))
        else:
            store.remove(damage.name)
            out.append(Healing(damage, True, "removed: the next run computes it again"))
    return out


def _heal_unit(plan: Plan, unit: Unit, damages: list[Damage], store: Store) -> list[Healing]:
    seal_name = f"{unit.folder}/{unit.seal_name}"
    broken_seal = next((damage for damage in damages if damage.what == "seal"), None)
    if broken_seal is None:
        seal = unit.seal()
        if seal is None:
            said = "no seal of this run lists it: heal the run whose seal does"
            return [Healing(damage, False, said) for damage in damages]
        claims = {part.name: part.sha256 for part in (*seal.parts, *quarantine_parts(seal))}
        suspects = {damage.name for damage in damages}
    else:
        claims = _salvage(store, seal_name)
        # Who changed the seal may have changed the digests in it, the parts, and work that a stage goes on from.
        places = [f"{unit.folder}/{place}" for place in ("parts", "quarantine", "work")]
        suspects = {*claims, *(name for place in places for name in store.list(place))}
    # A part is only made together with its quarantine: where that is lost, both are made again.
    suspects |= {name.replace("/quarantine/", "/parts/") for name in suspects}
    with owned_folder("heal") as scratch:
        # A lease that a killed process left would be waited for; nobody runs now.
        leases = store.list(f"{unit.folder}/work/lease")
        overlay = OverlayStore(store, scratch, {seal_name, *suspects, *leases})
        try:
            _compute(plan, unit, overlay)
        except Exception as error:
            # Whatever a stage fails with here (a device that is not there, user code) is this object's outcome.
            said = str(error) if isinstance(error, SecateurError) else f"{type(error).__name__}: {error}"
            return [Healing(damage, False, f"it could not be computed again: {said}") for damage in damages]
        if broken_seal is None:
            return [_put_back(damage, claims[damage.name], overlay, store) for damage in damages]
        return [_put_back_seal(broken_seal, claims, overlay, store)]


def _put_back(damage: Damage, wanted: str, overlay: OverlayStore, store: Store) -> Healing:
    try:
        data = overlay.read(damage.name)
    except FileNotFoundError:
        return Healing(damage, False, "its stage does not make it any more; " + _RETIRE)
    if sha256(data) != wanted:
        said = f"computed again it has sha256 {sha256(data)[:12]}, its seal says {wanted[:12]}: {_OTHER}; {_RETIRE}"
        return Healing(damage, False, said)
    try:
        store.replace(damage.name, data)
    except IsADirectoryError:
        return Healing(damage, False, _FOLDER)
    return Healing(damage, True, "put back: its bytes are those of its seal again")


def _put_back_seal(damage: Damage, claims: dict[str, str], overlay: OverlayStore, store: Store) -> Healing:
    """Publish the new seal where each part, computed again, is the one that is there or that the damaged seal names."""
    seal = Seal.from_bytes(overlay.read(damage.name), damage.name)
    fresh = {}
    for name in (part.name for part in (*seal.parts, *quarantine_parts(seal))):
        data, there = overlay.read(name), _digest(store, name)
        made = sha256(data)
        if made == there:
            continue
        if made != claims.get(name) and (there is not None or name in claims):
            said = (
                f"its part {name}, computed again, has sha256 {made[:12]}, neither that of the part that is there nor one that "
                f"the damaged seal names: the part was changed too, or {_OTHER}; {_RETIRE}"
            )
            return Healing(damage, False, said)
        fresh[name] = data
    for name, data in [*fresh.items(), (damage.name, overlay.read(damage.name))]:
        try:
            store.replace(name, data)
        except IsADirectoryError:
            return Healing(damage, False, _FOLDER if name == damage.name else f"{name}: {_FOLDER}")
    same = f"made again: its {len(seal.parts)} parts were computed again and are the same"
    return Healing(damage, True, same + (f"; {len(fresh)} damaged or lost objects were put back" if fresh else ""))


_OTHER = "another device, torch or library makes other bytes"
_FOLDER = "a folder lies in its place, and what it holds is not Secateur's to remove: take it away, then heal"
_RETIRE = "it stays as it was; --recompute retires it with all that was computed from it"


def _salvage(store: Store, seal_name: str) -> dict[str, str]:
    """Return the sha256 of every part that a damaged seal still names; empty where it cannot be read at all."""
    folder = seal_name.rpartition("/")[0]
    out: dict[str, str] = {}
    try:
        body: Any = json.loads(store.read(seal_name))
        held = body["meta"].get("quarantine") or {}
        for part in [*body["parts"], *held.get("parts", ())]:
            claim = Part(**part)
            if claim.name.rpartition("/")[0] in (f"{folder}/parts", f"{folder}/quarantine"):
                out[str(claim.name)] = str(claim.sha256)
    except (FileNotFoundError, IsADirectoryError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}
    return out


def _digest(store: Store, name: str) -> str | None:
    try:
        return sha256(store.read(name))
    except (FileNotFoundError, IsADirectoryError):
        return None


def _compute(plan: Plan, unit: Unit, store: OverlayStore) -> None:
    """Run the stage of one unit on the overlay, serially, in this process."""
    from flows import pipeline
    from flows.measured import shift_inputs, shift_units
    from tasks.merge import merge_stage
    from tasks.proxy import proxy_stage
    from tasks.score import score_stage
    from tasks.selecting import selection_stage
    from tasks.selection.spec import PROXY
    from tasks.shard import shard_stage
    from tasks.shift.units import shift_stage
    from tasks.subset import SubsetInputs, subset_stage
    from tasks.train import TrainInputs, train_stage

    run, pool = plan.config, SerialPool()
    if unit.stage == "shard":
        shard_stage(run.data, store, pool, plan.source_code)
        return
    index = sealed(Unit(store, "shard", plan.shard))

    def seal_of(stage: str, key: str) -> Seal:
        return sealed(next(one for name, one in plan.units(store) if (name, one.key) == (stage, key)))

    if unit.stage == "proxy":
        assert run.proxy is not None
        proxy_stage(run.proxy, pipeline.proxy_inputs(plan, index), store, pool)
        return
    if unit.stage == "score":
        assert run.score is not None
        proxies = [seal_of("proxy", key) for key in plan.proxies]
        score_stage(run.score, pipeline.score_inputs(plan, index, proxies), store, pool)
        return
    scores = seal_of("score", plan.score) if plan.score is not None else None
    if unit.stage == "merge":
        merge_stage(pipeline.merge_inputs(plan, index, scores), store, pool)
    elif unit.stage == "select":
        chosen_unit = pipeline.distinct(plan)[unit.key]
        read = plan.proxies if chosen_unit.spec.features == PROXY else ()
        inputs = pipeline.select_inputs(
            plan, index, seal_of("merge", plan.merge), [seal_of("proxy", key) for key in read]
        )
        selection_stage([(unit.key, chosen_unit)], inputs, store, pool)
    elif unit.stage == "subset":
        chosen = next(key for key, _ in plan.selections.values() if plan.subset(key) == unit.key)
        inputs_of = SubsetInputs(run.data, index, run.select.resources)
        subset_stage(subset_units(plan, {chosen: seal_of("select", chosen)}), inputs_of, store, pool)
    elif unit.stage in ("features", "shift"):
        assert run.shift is not None
        # The features need none.
        only = replace(plan, shifts=tuple(one for one in plan.shifts if one.key == unit.key)[:1])
        chosen_seals = {one.selection: seal_of("select", one.selection) for one in only.shifts}
        cut = {one.selection: seal_of("subset", plan.subset(one.selection)) for one in only.shifts}
        items = shift_units(only, chosen_seals, cut)
        first = [seal_of("proxy", key) for key in plan.proxies[:1]] if run.shift.features == PROXY else []
        shift_stage(run.shift, items, shift_inputs(plan, index, seal_of("merge", plan.merge), first), store, pool)
    else:
        training = next(training for training in plan.trainings if training.key == unit.key)
        key = training.selection
        selections = {key: seal_of("select", key)} if key is not None else {}
        subsets = {key: seal_of("subset", plan.subset(key))} if key is not None else {}
        every = pipeline.train_inputs(plan, index, selections, subsets)
        wanted = [item for item in every.units if item[0] == unit.key][:1]
        train_stage(run.train, TrainInputs(every.data, index, every.code, wanted), store, pool)


def _heal_report(
    plan: Plan | None, lineage: Lineage, damages: list[Damage], before: list[Healing], store: Store
) -> list[Healing]:
    """Write the report again, which is a view of sealed stages; what is wrong with run.json itself cannot be healed."""
    out = [Healing(damage, False, "it is what names the run; `secateur run CONFIG` records it anew") for damage in damages
           if damage.what == "run"]  # fmt: skip
    reports = [damage for damage in damages if damage.what == "report"]
    if not reports:
        return out
    if plan is None or plan.run_name != lineage.run or any(not healing.healed for healing in (*before, *out)):
        return out + [Healing(damage, False, "it is written again once the stages are sound") for damage in reports]
    try:
        make_report(plan, store, recorded_stages(store, lineage.run))
    except IsADirectoryError:
        return out + [Healing(damage, False, _FOLDER) for damage in reports]
    return out + [Healing(damage, True, "written again from the sealed stages") for damage in reports]
