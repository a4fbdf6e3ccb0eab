"""The verify command: what is damaged, what was healed, what was retired, and the command that goes on."""

from __future__ import annotations

import shlex
from dataclasses import asdict

from cluster.errors import StageError
from cluster.storage import Store
from flows.cli import print_json
from flows.lineage import load_lineage
from flows.loose import in_the_way
from flows.output import say
from flows.verify import Damage, Findings, verify_run


def verify_and_repair(run: str, store_uri: str, heal: bool, recompute: bool, as_json: bool) -> bool:
    """Verify a run, heal and then retire where asked for, print what came of it; return whether nothing is damaged now."""
    store = Store(store_uri)
    lineage = load_lineage(run, store)
    found = verify_run(lineage, store)
    document = found.document() | {"healed": [], "unhealed": [], "retired": None, "next": []}
    lines = _describe(found, store)
    left = found.damage
    if heal and left:
        from flows.healing import heal_run

        healings = heal_run(lineage, found, store)
        left = [healing.damage for healing in healings if not healing.healed]
        for name, healed in (("healed", True), ("unhealed", False)):
            document[name] = [asdict(healing) for healing in healings if healing.healed is healed]
        lines += [f"  {'healed' if one.healed else 'not healed'}: {one.damage.name}: {one.said}" for one in healings]
    if recompute:
        refuse_obstacles(left, store)
    if recompute and any(damage.loose for damage in left):
        from flows.healing import refuse_running, remove_loose

        refuse_running(store, [lineage.run], "removing damaged parts")
        removed = [one for one in remove_loose(lineage, left, store) if one.healed]
        document["healed"] = [*document["healed"], *(asdict(one) for one in removed)]
        lines += [f"  healed: {one.damage.name}: {one.said}" for one in removed]
        left = [damage for damage in left if damage not in [one.damage for one in removed]]
    place = f"--store {shlex.quote(store.uri)}"
    following: list[str] = []
    if recompute and left:
        from flows.retiring import retire

        gone = retire(left, store)
        document["retired"] = asdict(gone)
        lines.append(f"retired {len(gone.units)} units, {gone.objects} objects, to {store.url(gone.folder)}")
        lines += [f"  {unit}" for unit in gone.units]
        following = [f"secateur resume {name} {place}" for name in gone.runs]
        views = [damage for damage in left if damage.what == "report"]
        left = [damage for damage in left if damage.what == "run"]
        if views and not gone.runs:
            following, left = [f"secateur report {found.run} {place}"], [*left, *views]
    elif any(in_the_way(damage.name, store) for damage in left):
        # Once it is away this does what is left to do, whatever it was.
        following = [f"secateur verify {found.run} --heal {place}"]
        away = [store.url(damage.name) for damage in left if in_the_way(damage.name, store)]
        lines.append(f"move away first: {', '.join(away)}")
    elif left:
        following = ([] if heal else [f"secateur verify {found.run} --heal {place}"]) + [
            f"secateur verify {found.run} --recompute {place}"
        ]
    document["next"] = following
    if as_json:
        print_json(document)
    else:
        say("\n".join(lines + [f"next: {command}" for command in following]))
    return not left


def refuse_obstacles(damages: list[Damage], store: Store) -> None:
    """Raise StageError where a folder or a dead link lies in an object's place: it cannot be retired, nor written over."""
    for damage in damages:
        if in_the_way(damage.name, store):
            raise StageError(
                f"{store.url(damage.name)} is in the way ({damage.problem}): it can neither be retired nor written over, and "
                "nothing was retired; take it away, then run the same command again"
            )


def _describe(found: Findings, store: Store) -> list[str]:
    read = f"{found.units} seals, {found.parts} objects, {found.bytes:,} bytes read"
    lines = [f"run {found.run} in {store.uri}: {read}; " + (f"{len(found.damage)} damaged" if found.damage else "all sound")]
    if found.not_computed:
        lines.append(f"  not computed yet: {len(found.not_computed)} units, first {found.not_computed[0]}")
    return lines + [f"  {damage}" for damage in found.damage]
