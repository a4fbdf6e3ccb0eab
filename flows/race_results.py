"""The results of a race: its arms as the report takes them, its record and its sentences, from sealed units alone."""

from __future__ import annotations

from typing import Any

from cluster.errors import CorruptError
from cluster.record import Seal, Unit
from cluster.storage import Store
from flows.costs import scored_examples, wall_time
from flows.plan import FULL, Plan, sealed
from flows.race_plan import confirming, families
from tasks.policy.answer import Costs
from tasks.policy.halving import RANDOM
from tasks.report.inputs import ArmResult
from tasks.report.policy import RULE, keep_record, policy_sentence
from tasks.report.wording import keep_sentence, notes, percent
from tasks.selection.spec import SelectionSpec

# Points by which a sealed validation accuracy may differ from its own table of predictions.
AGREEMENT = 1e-3


def race_specs(plan: Plan) -> dict[tuple[str, float], SelectionSpec]:
    """Return the selections that were tested by (arm, keep): random, and the winner where there is one."""
    out = {}
    for keep, family in families(plan.config).items():
        out[RANDOM, keep] = SelectionSpec(protocol=RANDOM, keep=keep)
        winner = plan.races[keep].winner
        if winner is not None:
            out[winner, keep] = family.candidates[winner]
    return out


def race_arms(plan: Plan, store: Store) -> list[ArmResult]:
    """Return the arms of a decided race: random and the winner in the replicates that confirm.

    At a keep without a winner only random, in the replicates of the race. Test results of candidates that were dropped are
    read by nobody. Raises InputError where something is not complete.
    """
    policy = plan.config.policy
    assert policy is not None
    by_place = {(one.arm, one.keep, one.replicate): one for one in plan.trainings}
    out = []
    for (name, keep), spec in race_specs(plan).items():
        fresh = plan.races[keep].winner is not None
        numbers = confirming(policy) if fresh else range(policy.rungs[-1])
        places = [by_place[name, keep, number] for number in numbers]
        selections = [sealed(Unit(store, "select", place.selection or "")) for place in places]
        trains = [sealed(Unit(store, "train", place.key)) for place in places]
        alpha = selections[0].meta["alpha"]
        out.append(ArmResult(name, spec.score, spec.protocol, keep, alpha, spec.gamma, selections, trains))
        if name != RANDOM and plan.config.train.full:
            whole = [sealed(Unit(store, "train", by_place[FULL, keep, number].key)) for number in numbers]
            out.append(ArmResult(FULL, None, FULL, keep, None, None, None, whole))
    return out


def add_race(plan: Plan, store: Store, index: Seal, results: dict[str, Any]) -> None:
    """Put `policy` into the results, and its sentences in the place of their headline. Raises CorruptError.

    Holds the sealed validation accuracy of every training of the race against its table of predictions.
    """
    policy = plan.config.policy
    assert policy is not None
    check_validation(plan, store)
    entries = []
    for keep, family in families(plan.config).items():
        settings = {name: _given(spec) for name, spec in family.candidates.items()}
        costs = costs_at(plan, keep, int(index.meta["num_train"]))
        touched = touched_at(plan, keep, store)
        entries.append(keep_record(keep, plan.races[keep], family.left_out, settings, costs, results["comparisons"], touched))
    wall = wall_time(plan, store)
    for entry in entries:
        entry["sentence"] = policy_sentence(entry, wall, len(entries))
    results["policy"] = {
        "rule": RULE, "family": [dict(line) for line in policy.family], "rungs": list(policy.rungs), "stay": policy.stay,
        "confirm": policy.confirm, "keeps": entries, "wall": wall,
    }  # fmt: skip
    results["headline"] = " ".join(entry["sentence"] for entry in entries)
    tested = {entry["keep"] for entry in entries if entry["confirmation"] is not None}
    for row in results["keeps"]:
        if row["keep"] not in tested:
            row["sentence"] = f"At keep {percent(row['keep'])} no candidate was tested: random, in the replicates of the race."
            if plan.config.train.full:
                row["sentence"] += " The full data (train.full) are trained beside a winner, and there is none."
        else:
            row["sentence"] = keep_sentence(results, row["keep"])
    results["notes"] = notes(results)


def _given(spec: SelectionSpec) -> dict[str, Any]:
    return {name: value for name, value in spec.effective().items() if value is not None and name != "keep"}


def touched_at(plan: Plan, keep: float, store: Store) -> dict[str, int]:
    """Return the distinct examples that a training of random and of each candidate shows, by name, at one keep."""
    first = [one for one in plan.trainings if (one.keep, one.replicate) == (keep, 0)]
    return {one.arm: int(sealed(Unit(store, "train", one.key)).meta["examples_touched"]) for one in first}


def check_validation(plan: Plan, store: Store) -> None:
    """Raise CorruptError where the race was judged by a validation accuracy that is not that of the predictions."""
    from tasks.report.correctness import part_named
    from tasks.tables import load_part

    policy = plan.config.policy
    assert policy is not None
    for key in dict.fromkeys(one.key for one in plan.trainings if one.replicate < policy.rungs[-1]):
        seal = sealed(Unit(store, "train", key))
        part = part_named(seal, "validation.parquet")
        table = load_part(store, part, ["label", "predicted"])
        right = table.column("label").to_numpy() == table.column("predicted").to_numpy()
        share, stated = 100.0 * float(right.mean()), float(seal.meta["validation_accuracy"])
        if abs(share - stated) > AGREEMENT:
            raise CorruptError(
                f"training {key[:12]}: its seal states a validation accuracy of {stated:.4f} %, its predictions in "
                f"{store.url(part.name)} give {share:.4f} %"
            )


def costs_at(plan: Plan, keep: float, num_train: int) -> Costs:
    """Return what the answer at one keep cost."""
    config = plan.config
    policy = config.policy
    assert policy is not None
    scoring = scored = None
    if config.proxy is not None:
        # Of scores that read no proxy there are none.
        scoring = len(plan.proxies) * config.proxy.steps_for(num_train)
        scored = scored_examples(plan, num_train)
    race = plan.races[keep]
    steps = config.train.steps_for(round(keep * num_train))
    # Random and the winner. The full data that `train.full` trains beside them decide nothing.
    confirmation = 0 if race.winner is None else 2 * policy.confirm * steps
    return Costs(scoring, scored, len(race.trainings()) * steps, confirmation, config.train.steps_for(num_train), steps)
