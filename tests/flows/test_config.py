"""The configuration: overrides, environment, and one clear message for what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.errors import InputError
from flows.config import load_config

ROOT = Path(__file__).parents[2]
QUICKSTART = str(ROOT / "configs/quickstart.yaml")


def write(tmp_path: Path, body: dict[str, Any]) -> str:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(body))
    return str(path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("select.keeep=0.1", r"unknown key 'select.keeep'; did you mean 'keep'\?"),
        ("proxy.model.arg={}", r"unknown key 'proxy.model.arg'; did you mean 'args'\?"),
        ("select.keep=0", r"select.keep is 0: .*\(0, 1\]"),
        ("select.keep=1.5", r"select.keep is 1.5"),
        ("select.arms=[{protocol: exact, score: el2n, alpha: 1}]", "exact with alpha 1"),
        ("select.arms=[{protocol: topk, score: el2m}]", r"'el2m'.*(el2n|direction)"),
        ("score.scores=[el2m]", r"el2m.*el2n"),
        ("select.arms=[{protocol: topkk, score: el2n}]", "topkk.*topk"),
        ("select.arms=[]", "select.arms"),
        ("select.arms.0.keeps=[0.3]", r"has keep 0.3 in its keeps, which select.keep has not: \[0.2\]"),
        ("select.arms.0.keeps=[]", "select.arms.0.keeps"),
        ("select={keep: [0.1, 0.2], arms: [{protocol: topk, score: el2n, keeps: 0.1}]}", "keep 0.2 has no arm beside random"),
        ("proxy=null", "no scores"),
        ("name=../up", "name"),
        ("seed=-1", "seed"),
        ("train.replicates=0", "train.replicates"),
        ("data.validation=.nan", "data.validation"),
        ("data.num_classes=100000000", r"data.num_classes.* is 100000000: .*1000000"),
        ("data.label_map={a: 0, b: 100000000}", "at most 1000000 classes"),
    ],
)
def test_wrong_settings_get_one_message(override: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_config(QUICKSTART, [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        "nothing", "=1", "seed.deeper=1", "select.arms.9.alpha=0.1", "seed=[1", "score.scores.0.x=1", "score.scores.0.x.y=1",
        f"select.arms.{'9' * 5000}.alpha=0.1", f"select.arms.{'9' * 5000}=0.1",
    ],
)  # fmt: skip
def test_overrides_that_are_none(override: str) -> None:
    with pytest.raises(InputError, match="--set") as caught:
        load_config(QUICKSTART, [override])
    assert len(str(caught.value)) < 600


def test_an_override_below_the_item_of_an_earlier_one() -> None:
    with pytest.raises(InputError, match=r"--set 'select.keep.0.x=1': 0 is a plain value"):
        load_config(QUICKSTART, ["select.keep=[0.1, 0.2]", "select.keep.0.x=1"])


def test_overrides_reach_into_lists() -> None:
    config = load_config(QUICKSTART, ["select.arms.1.alpha=0.4", "select.keep=[0.1, 0.3]"])
    assert config.select.arms[1].alpha == 0.4
    assert config.select.keep == (0.1, 0.3)


def test_an_arm_of_one_keep_is_checked_and_made_there() -> None:
    band = "{protocol: band, score: el2n, beta: 0.1, width: 0.2, keeps: 0.1}"
    config = load_config(QUICKSTART, [f"select={{keep: [0.1, 0.3], arms: [{{protocol: topk, score: el2n}}, {band}]}}"])
    assert [[arm.label for arm in config.arms_at(keep)] for keep in config.select.keep] == [
        ["random", "topk el2n", "band el2n beta=0.1 width=0.2"], ["random", "topk el2n"],
    ]  # fmt: skip


def test_environment_fills_texts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MNIST", str(tmp_path))
    assert load_config(str(ROOT / "configs/mnist.yaml")).data.train == str(tmp_path)
    monkeypatch.delenv("MNIST")
    assert load_config(str(ROOT / "configs/mnist.yaml")).data.train.endswith("data/mnist")
    body = yaml.safe_load(Path(QUICKSTART).read_text())
    body["data"]["train"] = "${NO_SUCH_VARIABLE_HERE}"
    with pytest.raises(InputError, match="NO_SUCH_VARIABLE_HERE"):
        load_config(write(tmp_path, body))


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [1\n", "", "\x00"])
def test_files_that_are_no_configuration(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(InputError):
        load_config(str(path))
    with pytest.raises(InputError, match="cannot be read"):
        load_config(str(tmp_path / "missing.yaml"))


def test_shipped_configurations_are_valid() -> None:
    for name in ("quickstart", "mnist", "s3"):
        assert load_config(str(ROOT / f"configs/{name}.yaml")).arms_at(0.1)[0].label == "random"
