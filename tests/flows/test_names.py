"""Names that come from data and configuration: they stay text in the report, inside the store and on the terminal."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cluster.errors import InputError
from cluster.storage import Store, check_name
from flows import cli
from flows.api_link import ApiLink
from flows.attempts import Attempt
from flows.config import load_config, parse_config
from flows.plan import make_plan
from flows.progress import print_line
from flows.repair import verify_and_repair
from flows.show import print_outcome, show_status
from tasks.pool import SerialPool
from tasks.report.publish import read_results
from tasks.shard import shard_stage
from tasks.sources import DataSpec
from tests.flows.serial_run import run_serially
from tests.flows.verify_case import ROOT, config, made, plan

pytestmark = [pytest.mark.xdist_group("verify"), pytest.mark.timeout(300)]

CLASSES = ("<script>alert(1)", "\"onmouseover='x' <b>", "evil..&amp;", "&lt;img src=x onerror=alert(2)>", "\u202eright to left")
FILES = ("<svg onload=alert(3)>.png", "a b.png", "..png.png", "semi;colon`tick`$(id).png", "new\nline.png", "%2e%2e%2f.png")
ARM = "</pre></title><script>alert(4)</script>"


class Tags(HTMLParser):
    """Collect what a browser would see as elements and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.values: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.values += [value or "" for _, value in attrs]


def test_markup_and_paths_in_names_stay_text(tmp_path: Path) -> None:
    images = tmp_path / "images"
    rng = np.random.default_rng(0)
    for number, name in enumerate(CLASSES):
        (images / name).mkdir(parents=True)
        for count in range(4):
            for file in FILES:
                pixels = rng.integers(0, 40 * (number + 1), (4, 4), dtype=np.uint8)
                Image.fromarray(pixels).save(images / name / f"{count}{file}")
    sets = [
        "data.source=images", f"data.train={images}", "data.test_fraction=0.3", "data.validation=0.1", "data.shard_rows=50",
        "score.scores=[el2n]", "proxy.epochs=1", "proxy.seeds=1", "train.steps=2", "train.replicates=2", "select.keep=0.3",
        f"select.arms=[{{name: '{ARM}', protocol: topk, score: el2n}}]",
    ]  # fmt: skip
    store = tmp_path / "store"
    plan = make_plan(load_config(str(ROOT / "configs/quickstart.yaml"), sets))
    run_serially(plan, Store(str(store)), SerialPool())
    page = (store / "runs" / plan.run_name / "report" / "index.html").read_text()
    seen = Tags()
    seen.feed(page)
    assert not {"script", "img", "iframe", "object", "embed", "link", "base", "form", "b1"} & seen.tags
    assert not [name for name in seen.attributes if name.startswith("on") or name in ("href", "src", "srcset", "action")]
    assert not [value for value in seen.values if "javascript:" in value]
    assert "alert(1)" in page and "alert(4)" in page and "<script" not in page
    policy = "default-src 'none'"
    assert policy in page and policy in page[: page.index("<title>")]
    for path in store.rglob("*"):
        name = str(path.relative_to(store))
        assert check_name(name) == name and re.fullmatch(r"[A-Za-z0-9._=+/-]+", name), name
    assert {path.name for path in tmp_path.iterdir()} == {"images", "store"}


ESCAPES = "\x1b]0;pwned\x07\x1b[31m\x9b2J\u202e"
SHOWN = r"\x1b]0;pwned\x07\x1b[31m\x9b2J\u202e"


def raw(text: str) -> set[str]:
    """Return the characters of a printed text that a terminal obeys."""
    return {c for c in text if not c.isprintable()} - {"\n"}


def test_escapes_in_names_of_data_are_shown_by_the_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("cat/a.png", "dog/a.png", f"cat/{ESCAPES}.png", f"dog/b\n{ESCAPES}.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 4), dtype=np.uint8)).save(path)
        if ESCAPES in name:
            path.write_bytes(b"GIF89a")
    spec = DataSpec(source="images", train=str(tmp_path / "images"))
    with pytest.raises(InputError, match="2 of 4 rows are bad") as caught:
        shard_stage(spec, Store(str(tmp_path / "store")), SerialPool())
    assert ESCAPES in str(caught.value)
    with pytest.raises(SystemExit):
        cli.fail(str(caught.value), 2)
    said = capsys.readouterr().err
    # The first line, and one row of the table: a newline in a name makes no row.
    assert said.count(SHOWN) == 2 and not raw(said) and said.count("\n") == 2
    with pytest.raises(SystemExit):
        cli.fail(f"{ESCAPES} is\r\nno file", 2)
    assert capsys.readouterr().err == f"secateur: {SHOWN} is no file\n"


def test_escapes_in_what_goes_to_the_terminal_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    print_line(f"shard   1 row in quarantine: {ESCAPES}\n  and more")
    assert capsys.readouterr().err == f"shard   1 row in quarantine: {SHOWN}\n  and more\n"
    store = Store(str(made(tmp_path)))
    results = read_results(store, plan().run_name)
    assert results is not None
    name = next(arm["name"] for arm in results["arms"] if arm["protocol"] == "topk")
    text = json.dumps(results, ensure_ascii=False).replace(f'"{name}"', json.dumps(name + ESCAPES))
    print_outcome(json.loads(text), store, as_json=False)
    said = capsys.readouterr().out
    # The table folds a long name.
    assert r"\x1b]0" in said and not raw(said)

    def fault(*_: object) -> None:
        raise RuntimeError(f"no such column {ESCAPES}")

    monkeypatch.setattr("flows.show.show_status", fault)
    monkeypatch.setattr("sys.argv", ["secateur", "status"])
    with pytest.raises(SystemExit):
        cli.main()
    said = capsys.readouterr().err
    assert f"RuntimeError: no such column {SHOWN}" in said and not raw(said)


def test_warnings_and_listings_show_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / f"store{ESCAPES}"
    Path(made(tmp_path)).rename(store)
    run = plan().run_name
    with pytest.raises(InputError), Attempt(Store(str(store)), run) as attempt:
        (store / "runs" / run / "attempts" / f"{attempt.name}.heartbeat.json").write_text("{")
        store.rename(tmp_path / "away")
        raise InputError("wrong")
    (tmp_path / "away").rename(store)
    ApiLink().warn(f"the API is lost {ESCAPES}")
    told = capsys.readouterr().err
    assert all(SHOWN in line for line in told.splitlines()) and told.count("\n") == 2 and not raw(told)
    show_status(run, str(store), as_json=False)
    told = capsys.readouterr().out
    assert f"store{SHOWN}" in told and "cannot be read" in told and not raw(told)
    for show in (show_status, lambda *_: verify_and_repair(run, str(store), False, False, False)):
        show(None, str(store), False)
        told = capsys.readouterr().out
        assert run in told and not raw(told)


SETTINGS = (
    "name={}", "select.arms.0.name={}", "select.arms.0.score={}", "data.train={}", "data.test={}", "code=[{}]",
    "code_version={}", "train.model.use={}", "scores_id_column={}",
)  # fmt: skip
CHARACTERS = ("\n", "\t", "\x7f", "\x9b", "\u2028", "\u202e")


@pytest.mark.parametrize(
    ("setting", "character"),
    [*((setting, "\x1b") for setting in SETTINGS), *(("select.arms.0.name={}", character) for character in CHARACTERS)],
)
def test_names_with_control_characters_are_refused(setting: str, character: str) -> None:
    with pytest.raises(InputError) as caught:
        config(setting.format(json.dumps(f"a{character}b")))
    assert not raw(str(caught.value))


def test_arguments_labels_and_recorded_runs_may_hold_them() -> None:
    # A separator that user code needs, a label that is so in the data.
    found = config('data.label_map={"a\\tb": 0, "c": 1}', 'train.model={use: "um:net", args: {separator: "\\n"}}')
    assert found.data.label_map == {"a\tb": 0, "c": 1} and found.train.model.args == {"separator": "\n"}
    body = found.model_dump(mode="json")
    body["select"]["arms"][0]["name"] = ESCAPES
    assert parse_config(body).select.arms[0].label == ESCAPES
