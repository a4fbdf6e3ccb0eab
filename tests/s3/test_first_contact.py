"""An endpoint whose host name cannot be resolved: wrong input at first contact, an outage once it has answered."""

from __future__ import annotations

import sys

import pytest

from cluster import retrying, s3_files
from cluster.errors import StoreError, StoreRefusedError
from cluster.storage import Store
from flows import cli

# No DNS knows a name below .invalid (RFC 2606).
TYPO = "http://objects.no-such-host.invalid:9000"

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def typo(credentials: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Name the endpoint in the environment of a process that none has answered yet; waits are short."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", TYPO)
    monkeypatch.setattr(s3_files, "_answered", set())
    # A machine without DNS gives no answer, which may be an answer soon.
    monkeypatch.setattr(retrying, "FIRST_CONTACT_S", 0.5)
    monkeypatch.setattr(retrying, "BUDGET_S", 0.5)
    return TYPO


@pytest.mark.parametrize("words", [["status"], ["resume", "some-run"]])
def test_a_name_that_cannot_be_resolved_is_wrong_input(
    words: list[str], typo: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["secateur", *words, "--store", "s3://some-bucket/x"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    out, error = capsys.readouterr()
    assert (end.value.code, out, error.count("\n")) == (2, "", 1), error
    assert "objects.no-such-host.invalid:9000" in error and "correct AWS_ENDPOINT_URL" in error


def test_one_that_has_answered_is_waited_for(typo: str) -> None:
    store = Store("s3://some-bucket/x")
    s3_files.trust_endpoint(typo)
    with pytest.raises(StoreError, match="still failing after") as caught:
        store.read("a")
    assert not isinstance(caught.value, StoreRefusedError)
