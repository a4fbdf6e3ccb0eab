"""Every field of every specification is documented and marked; identity is what the marks say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from flows.config import RunConfig, load_config
from flows.plan import make_plan
from tasks.spec import Spec

ROOT = Path(__file__).parents[2]


def specs_below(model: type[BaseModel]) -> set[type[BaseModel]]:
    found = {model}

    def walk(annotation: Any) -> None:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            if annotation not in found:
                found.update(specs_below(annotation))
            return
        for inner in getattr(annotation, "__args__", ()):
            walk(inner)

    for info in model.model_fields.values():
        walk(info.annotation)
    return found


@pytest.mark.parametrize("spec", sorted(specs_below(RunConfig), key=lambda spec: spec.__name__))
def test_every_field_is_documented_and_marked(spec: type[BaseModel]) -> None:
    assert issubclass(spec, Spec)
    for name, info in spec.model_fields.items():
        assert info.description, f"{spec.__name__}.{name} has no documentation"
        extra = info.json_schema_extra
        assert isinstance(extra, dict) and isinstance(extra["identity"], bool), f"{spec.__name__}.{name} has no mark"


def test_how_a_run_is_run_is_not_its_identity() -> None:
    path = str(ROOT / "configs/quickstart.yaml")
    one = load_config(path)
    other = load_config(path, ["proxy.resources.workers=2", "train.resources.retries=9", "train.checkpoint_every_s=0"])
    assert one.identity() == other.identity()
    assert make_plan(one).run_name == make_plan(other).run_name


@pytest.mark.parametrize("change", ["select.keep=0.3", "seed=1", "train.steps=10", "score.scores=[el2n]", "proxy.seeds=2"])
def test_what_a_run_computes_is_its_identity(change: str) -> None:
    path = str(ROOT / "configs/quickstart.yaml")
    one, other = make_plan(load_config(path)), make_plan(load_config(path, [change]))
    assert one.run_name != other.run_name


def test_python_files_are_short_and_named_after_the_domain() -> None:
    forbidden = {"select", "queue", "types", "statistics", "random", "logging", "utils", "helpers", "common"}
    for folder in ("flows", "tasks", "cluster"):
        for path in (ROOT / folder).rglob("*.py"):
            assert path.stem not in forbidden, path
            assert len(path.read_text().splitlines()) <= 400, path
