"""Whatever bytes and overrides the loader is given, it returns a configuration or raises InputError with a short message."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.errors import InputError
from cluster.fingerprint import canonical_json
from cluster.redaction import find_secret, scrub
from flows.config import RunConfig, load_config, parse_config

pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).parents[2]
BODY: dict[str, Any] = yaml.safe_load((ROOT / "configs/quickstart.yaml").read_text())
FUZZ = settings(
    derandomize=True, deadline=None, max_examples=150, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.dates() | st.binary(max_size=8)
    | st.sampled_from(["el2n", "topk", "exact", "${HOME}", "${NO_SUCH}", "${", "a:b", "s3://b/k", "../..", "\x00", "mlp"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def _places(body: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = body.items() if isinstance(body, dict) else enumerate(body) if isinstance(body, list) else ()
    for name, item in items:
        yield (*place, name)
        yield from _places(item, (*place, name))


PLACES = sorted(_places(BODY), key=str)


def load(data: bytes, overrides: Sequence[str] = ()) -> RunConfig | None:
    """Load bytes as a configuration file; None where it was refused as it must be."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_bytes(data)
        try:
            return load_config(str(path), overrides)
        except InputError as error:
            assert 10 < len(str(error)) < 3000
            return None


def check(config: RunConfig | None) -> None:
    """Assert that an accepted configuration is what its record says, and has an identity or none that is stable."""
    if config is None:
        return
    again = parse_config(config.model_dump(mode="json"))
    assert again.model_dump(mode="json") == config.model_dump(mode="json")
    try:
        data = canonical_json(config.identity())
    except InputError:
        return
    assert canonical_json(again.identity()) == data


@FUZZ
@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    check(load(data))


@FUZZ
@given(st.text(alphabet=st.sampled_from(list("ab:-[]{}&*!|>'\"#,?%@`~<\n \t0.19e")), max_size=80))
def test_any_yaml_signs(text: str) -> None:
    check(load(text.encode()))


@FUZZ
@given(st.sampled_from(PLACES), plain)
def test_any_value_at_any_place(place: tuple[Any, ...], value: Any) -> None:
    body = copy.deepcopy(BODY)
    inner = body
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    check(load(yaml.dump(body, Dumper=yaml.SafeDumper).encode()))


@FUZZ
@given(st.sampled_from(PLACES), st.text(max_size=10), plain)
def test_any_key_at_any_place(place: tuple[Any, ...], key: str, value: Any) -> None:
    body = copy.deepcopy(BODY)
    inner = body
    for name in place[:-1]:
        inner = inner[name]
    if isinstance(inner, dict):
        inner[key] = value
    check(load(yaml.dump(body, Dumper=yaml.SafeDumper).encode()))


@FUZZ
@given(st.lists(st.text(max_size=30) | st.sampled_from(["seed=", "select.keep=", "data=", "train.steps="]).flatmap(
    lambda start: st.text(max_size=20).map(lambda rest: start + rest)), max_size=3))  # fmt: skip
def test_any_overrides(overrides: list[str]) -> None:
    check(load((ROOT / "configs/quickstart.yaml").read_bytes(), overrides))


@FUZZ
@given(
    st.text(max_size=60),
    st.sampled_from(["AKIAABCDEFGHIJKLMNOP", "https://u:hunter2secret@h/x", "ghp_0123456789abcdefghij01"]),
)
def test_secrets_are_seen_in_any_surroundings(text: str, secret: str) -> None:
    around = f"{text} {secret} {text}"
    assert find_secret(around) is not None
    said = scrub(around)
    assert secret not in said and "hunter2secret" not in said
    assert scrub(said) == said
