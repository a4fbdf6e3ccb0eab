"""The arm of soft labels: its loss by hand, its teacher, its keys, and a run that is struck between teacher and student."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from cluster.errors import InputError
from cluster.record import Seal, Unit, read_part
from cluster.storage import Store
from flows.config import OWN, SOFT, RunConfig, parse_config
from flows.lineage import load_lineage
from flows.plan import FULL, PlannedTraining, make_plan, sealed
from tasks.checkpoints import decode_state
from tasks.dataset import Dataset
from tasks.models.build import build_model
from tasks.pool import SerialPool
from tasks.report.correctness import part_named
from tasks.schemas import TEST
from tasks.soft_labels import SoftTargets, teacher_probabilities
from tasks.spec import Numerics
from tasks.tables import load_part
from tests.flows.serial_run import run_serially
from tests.tasks.stage_case import Killed, dying_at
from tests.tasks.training_case import pipeline_of

pytestmark = pytest.mark.timeout(300)

KEEPS = [0.1, 0.2]


def config(keep: Any = tuple(KEEPS), **train: Any) -> RunConfig:
    model = {"use": "mlp", "args": {"hidden": [8]}}
    return parse_config(
        {
            "name": "soft",
            "data": {"source": "sklearn", "train": "digits", "limit": 300},
            "proxy": {"model": model, "seeds": 1, "steps": 4, "batch_size": 32},
            "score": {"scores": ["el2n"]},
            "select": {"keep": keep, "arms": [{"protocol": "topk", "score": "el2n"}]},
            "train": {
                "model": model, "epochs": 2, "min_steps": 12, "batch_size": 16, "lr": 0.01, "replicates": 2, "soft_labels": True,
                **train,
            },
        }
    )  # fmt: skip


def test_the_loss_is_the_formula_and_soft_labels_alone_have_the_gradient_of_cross_entropy() -> None:
    generator = np.random.default_rng(3)
    student, teacher = generator.normal(size=(4, 3)), generator.normal(size=(4, 3))

    def softmax(row: np.ndarray[Any, Any], temperature: float) -> list[float]:
        parts = [math.exp(value / temperature) for value in row]
        return [part / sum(parts) for part in parts]

    hard = torch.tensor([0.5, 1.0, 0.25, 2.0], dtype=torch.float64)
    for temperature, mix in ((1.0, 1.0), (4.0, 0.7), (0.5, 0.1)):
        soft = [softmax(row, temperature) for row in teacher]
        own = [softmax(row, temperature) for row in student]
        apart = [sum(p * math.log(p / q) for p, q in zip(*pair)) for pair in zip(soft, own)]
        truth = [(1 - mix) * float(label) + mix * temperature**2 * one for label, one in zip(hard, apart)]
        targets = SoftTargets(np.array(soft, dtype=np.float32), temperature, mix)
        got = targets.loss(hard, torch.tensor(student), torch.tensor(soft, dtype=torch.float64))
        assert got.tolist() == pytest.approx(truth, rel=1e-12)
    soft_labels = torch.tensor([softmax(row, 1.0) for row in teacher])
    gradients = []
    for which in range(2):
        logits = torch.tensor(student, requires_grad=True)
        plain = SoftTargets(np.zeros((4, 3), dtype=np.float32), 1.0, 1.0).loss(hard, logits, soft_labels)
        (plain if which else functional.cross_entropy(logits, soft_labels, reduction="none")).sum().backward()  # type: ignore[no-untyped-call]
        gradients.append(logits.grad)
    assert gradients[0] is not None and gradients[1] is not None
    assert torch.allclose(gradients[0], gradients[1], atol=1e-12)


def units(run: RunConfig) -> dict[tuple[str, float, int], PlannedTraining]:
    return {(one.arm, one.keep, one.replicate): one for one in make_plan(run).trainings}


def test_only_the_teacher_and_its_student_have_keys_of_their_own() -> None:
    soft, plain = units(config()), units(config(soft_labels=False))
    assert {place for place in soft if place not in plain} == {(SOFT, keep, number) for keep in KEEPS for number in (0, 1)}
    changed = {place[0] for place, one in plain.items() if soft[place].key != one.key}
    assert changed == {FULL}
    student = soft[SOFT, 0.1, 1]
    assert student.teacher == soft[FULL, 0.1, 1].key and student.selection == soft["random", 0.1, 1].selection
    assert student.seed == soft["random", 0.1, 1].seed
    assert make_plan(config(soft_labels=None)).run_name == make_plan(config(soft_labels=False)).run_name
    warm = units(config(soft_labels={"temperature": 4, "mix": 0.5}))
    assert {place[0] for place, one in soft.items() if warm[place].key != one.key} == {SOFT}
    # The full data's own schedule is one training for all keeps.
    own = units(config(soft_labels=None, own_schedule=True))
    assert {place[0] for place in own if place not in plain} == {OWN}
    assert own[OWN, 0.1, 0].key == own[OWN, 0.2, 0].key != own[FULL, 0.2, 0].key
    assert all(own[place].key == one.key for place, one in plain.items())
    # Where the steps are fixed one training on the full data is the teacher at every keep.
    fixed = units(config(steps=9, epochs=None, min_steps=0))
    assert fixed[SOFT, 0.1, 0].teacher == fixed[SOFT, 0.2, 0].teacher


def outcome(store: Store, seal: Seal) -> tuple[dict[str, Any], list[int]]:
    return dict(seal.meta), load_part(store, part_named(seal, "test.parquet")).column("predicted").to_pylist()


def test_a_run_struck_before_its_students_comes_to_the_same_results(tmp_path: Path) -> None:
    plan = make_plan(config(KEEPS[1]))
    places = {(one.arm, one.keep, one.replicate): one for one in plan.trainings}
    whole, struck = Store(str(tmp_path / "whole")), Store(str(tmp_path / "struck"))
    results = run_serially(plan, whole, SerialPool())
    first = places[SOFT, KEEPS[1], 0]
    with pytest.raises(Killed):
        run_serially(plan, dying_at(struck, 1, Unit(struck, "train", first.key).part_name("test.parquet")), SerialPool())
    assert all(Unit(struck, "train", one.key).seal() for one in plan.trainings if one.teacher is None)
    assert run_serially(plan, struck, SerialPool()) == results
    student, teacher = (sealed(Unit(whole, "train", places[name, KEEPS[1], 0].key)) for name in (SOFT, FULL))
    assert outcome(whole, student) == outcome(struck, sealed(Unit(struck, "train", first.key)))
    assert student.meta["soft_labels"] == {"teacher": teacher.key, "temperature": 1.0, "mix": 1.0}
    assert student.meta["final_loss"] != sealed(Unit(whole, "train", places["random", KEEPS[1], 0].key)).meta["final_loss"]
    assert [part.name.rpartition("/")[2] for part in student.parts] == ["test.parquet", "validation.parquet"]

    # The kept model is the one that was evaluated.
    model = build_model(plan.config.train.model, (8, 8), 10, 0)
    part = part_named(teacher, "model.pt")
    model.load_state_dict(decode_state(read_part(whole, part), part.name)["model"])
    test = Dataset(plan.config.data, sealed(Unit(whole, "shard", plan.shard)), whole).load(TEST)
    found = teacher_probabilities(model, test.x, pipeline_of(), Numerics(), 1.0)
    assert outcome(whole, teacher)[1] == found.argmax(1).tolist() and np.allclose(found.sum(1), 1)
    assert np.array_equal(found[:5], teacher_probabilities(model, test.x[:5], pipeline_of(), Numerics(), 1.0))
    warm = teacher_probabilities(model, test.x, pipeline_of(), Numerics(), 4.0)
    assert (warm.max(1) <= found.max(1)).all()

    row = next(arm for arm in results["arms"] if arm["name"] == SOFT and arm["keep"] == KEEPS[1])
    baseline = next(arm for arm in results["arms"] if arm["name"] == "random" and arm["keep"] == KEEPS[1])
    for same in ("n_kept", "steps", "batch_size", "examples_touched", "seeds"):
        assert row[same] == baseline[same]
    assert {(one["arm"], one["keep"]) for one in results["comparisons"]} >= {(SOFT, KEEPS[1]), (FULL, KEEPS[1])}
    assert any(note.startswith("The arm of soft labels") for note in results["notes"])
    graph = load_lineage(plan.run_name, whole).sources(whole)
    assert ("train", teacher.key) in graph["train", student.key]


def test_the_full_data_on_its_own_schedule_stands_beside_it_at_equal_steps(tmp_path: Path) -> None:
    run = config(KEEPS[0], own_schedule=True, soft_labels=None)
    results = run_serially(make_plan(run), Store(str(tmp_path)), SerialPool())
    n = results["dataset"]["n_train"]
    rows = {arm["name"]: arm for arm in results["arms"]}
    assert rows[FULL]["steps"] == rows["random"]["steps"] == 12
    assert rows[OWN]["steps"] == 2 * math.ceil(n / 16) > 12
    assert rows[OWN]["full"] and rows[OWN]["examples_touched"] == rows[OWN]["n_kept"] == n
    assert rows[OWN]["epochs"] == 2 and rows[OWN]["seeds"] == rows["random"]["seeds"]
    # Each is judged by itself.
    judged = {row["arm"]: row for row in results["comparisons"]}
    alone = run_serially(
        make_plan(config(KEEPS[0], soft_labels=None)), Store(str(tmp_path)), SerialPool()
    )["comparisons"]
    assert judged[FULL] == next(row for row in alone if row["arm"] == FULL)
    said = results["keeps"][0]["sentence"]
    assert "the full data is" in said and f"the full data for its own {rows[OWN]['steps']} steps is" in said


@pytest.mark.parametrize(
    ("train", "says"),
    [
        ({"full": False}, "soft_labels come from the model of the full data"),
        ({"soft_labels": None, "own_schedule": True, "full": False}, "own_schedule trains on the full data"),
        ({"own_schedule": True, "epochs": None, "min_steps": 0, "steps": 5}, "give epochs instead of steps"),
        ({"soft_labels": {"mix": 0}}, "soft_labels.mix"),
        ({"soft_labels": {"temperature": 0}}, "soft_labels.temperature"),
        ({"soft_labels": {"heat": 2}}, "unknown key 'train.soft_labels.heat'"),
    ],
)
def test_settings_that_say_nothing_are_refused(train: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        config(**train)


@pytest.mark.parametrize("more", [{}, {"soft_labels": None, "own_schedule": True}])
def test_a_race_has_no_students(more: dict[str, Any]) -> None:
    body = config(**more).model_dump(mode="json")
    del body["train"]["replicates"]
    with pytest.raises(InputError, match=r"train\.(soft_labels|own_schedule) beside `policy`"):
        parse_config({**body, "policy": "auto", "select": {"keep": 0.2}})
