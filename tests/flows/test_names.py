"""Names that come from data and configuration: they stay text in the report and inside the store."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cluster.storage import Store, check_name
from flows.config import load_config
from flows.plan import make_plan
from tasks.pool import SerialPool
from tests.flows.serial_run import run_serially
from tests.flows.verify_case import ROOT

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
