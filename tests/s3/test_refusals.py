"""What a later try cannot mend: one message that names the next act, the exit code, and no secret."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster import storage
from cluster.errors import InputError, StoreRefusedError
from cluster.storage import Store, filesystem
from flows import cli
from tests.s3.gateway import ACCESS, SECRET
from tests.s3.proxy import PAGE, Fault, FaultProxy

pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).parents[2]
QUICKSTART = str(ROOT / "configs/quickstart.yaml")
ALWAYS = 10_000

ACTS: dict[str, Callable[[Store], object]] = {
    "create": lambda store: store.create("x/new", b"x"),
    "replace": lambda store: store.replace("x/new", b"x"),
    "read": lambda store: store.read("x/here"),
    "exists": lambda store: store.exists("x/here"),
    "list": lambda store: store.list("x"),
    "open": lambda store: store.open("x/here"),
}


def refused(act: Callable[[], object], match: str) -> None:
    with pytest.raises(StoreRefusedError, match=match) as caught:
        act()
    text = str(caught.value)
    assert SECRET not in text and ACCESS not in text and "Sign in" not in text and "\n" not in text
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("act", ACTS)
def test_a_web_page_is_not_taken_for_an_empty_store(store: Store, network: FaultProxy, act: str) -> None:
    store.create("x/here", b"x")
    with network.doing(Fault("page", times=ALWAYS)):
        refused(lambda: ACTS[act](store), "what answers is no S3 service")
    assert len(network.requests) == 1
    assert b"html" in PAGE


@pytest.mark.parametrize(("kind", "match"), [("expired", "have expired; renew them"), ("denied", "access is denied")])
def test_refusals_are_not_tried_again(store: Store, network: FaultProxy, kind: str, match: str) -> None:
    store.create("x/here", b"x")
    for name, act in ACTS.items():
        with network.doing(Fault(kind, times=ALWAYS)):
            # A reply to HEAD has no body: 400 is all that is known.
            by_head = kind == "expired" and name in ("exists", "open")
            refused(lambda act=act: act(store), "as for expired credentials" if by_head else match)
        # On 400 boto asks, once, whether the bucket is in another region.
        assert len(network.requests) <= 2


def test_a_handle_that_was_open_says_so_too(store: Store, network: FaultProxy) -> None:
    store.create("x/here", b"x" * 1000)
    with store.open("x/here") as file, network.doing(Fault("expired", times=ALWAYS)):
        refused(file.read, "have expired")


def test_user_data_say_the_same_but_for_a_missing_bucket(store: Store, network: FaultProxy) -> None:
    store.create("x/here", b"x")
    fs, path = filesystem(f"{store.uri}/x/here")
    with network.doing(Fault("expired", times=ALWAYS)):
        refused(lambda: fs.cat_file(path), "have expired")
        refused(lambda: fs.find(path), "have expired")
    with pytest.raises(FileNotFoundError):
        fs.cat_file("no-such-bucket-here/x")


def test_a_missing_bucket_is_no_empty_store(store: Store) -> None:
    absent = Store("s3://no-such-bucket-here/x")
    for act in (lambda: absent.list("runs"), lambda: absent.read("a"), lambda: absent.create("a", b"x")):
        refused(act, r"there is no such bucket; make it or correct its name \(NoSuchBucket\)")
    with pytest.raises(InputError, match=r"cannot be written .*no such bucket"):
        absent.check_writable()


def test_wrong_or_no_credentials(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-this-one")
    refused(lambda: Store(store.uri).list("runs"), r"do not match; check the environment's.*\(SignatureDoesNotMatch\)")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    refused(lambda: Store(store.uri).create("a", b"x"), "are not known there")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    refused(lambda: Store(store.uri).read("a"), "there are no credentials; set AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "storage without a scheme")
    refused(lambda: Store(store.uri).read("a"), "the endpoint or the bucket's name is not valid")


@pytest.mark.parametrize("words", [["run", QUICKSTART], ["status"], ["show", "some-run"], ["resume", "some-run"]])
def test_the_command_ends_with_one_message(
    words: list[str], store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-this-one")
    monkeypatch.setattr(sys, "argv", ["secateur", *words, "--store", store.uri])
    with pytest.raises(SystemExit) as end:
        cli.main()
    out, error = capsys.readouterr()
    assert end.value.code == 2 and out == ""
    assert error.startswith("secateur: ") and error.count("\n") == 1 and "do not match" in error
    assert "not-this-one" not in error and ACCESS not in error


def test_the_process_shows_no_traceback(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-this-one")
    run = subprocess.run(
        [sys.executable, "-m", "flows.cli", "run", QUICKSTART, "--store", store.uri],
        cwd=ROOT, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1), run.stderr


def test_what_this_server_guarantees(store: Store) -> None:
    for thorough in (False, True):
        found = store.check_writable(thorough)
        # Multipart uploads overwrite in silence there; nothing in Secateur relies on them.
        assert (found.create_only, found.multipart_create_only, found.warning) == (True, False, None)
        assert found.facts == {"create_only": True, "multipart_create_only": False}
    assert store.list("tmp") == []


@pytest.mark.parametrize("kind", ["forget", "501"])
def test_an_endpoint_without_conditional_put_is_told_of_once(
    kind: str, store: Store, network: FaultProxy, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_warned", set())
    # One that does not know the header refuses the first request that has it; after that none has.
    with network.doing(Fault(kind, times=1 if kind == "501" else ALWAYS, method="PUT")), caplog.at_level(logging.WARNING):
        found = store.check_writable()
        assert not found.create_only and "never run two at once" in str(found.warning)
        store.check_writable()
        assert store.create("x/new", b"first")
        assert store.read("x/new") == b"first"
    told = [record.getMessage() for record in caplog.records if record.name == "secateur.store"]
    assert len(told) == 1 and "conditional PUT" in told[0] and store.uri in told[0]
    if kind == "501":
        assert not store.create("x/new", b"second")
        assert store.read("x/new") == b"first"


def test_the_doctor_tells_both_kinds_of_create_and_fails_where_the_first_is_not_refused(
    store: Store, network: FaultProxy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setenv("PREFECT_PROFILES_PATH", str(tmp_path / "none"))
    monkeypatch.setattr(sys, "argv", ["secateur", "doctor", "--json", "--store", store.uri])
    for faults, code in (((), 0), ((Fault("forget", times=ALWAYS, method="PUT"),), 1)):
        with network.doing(*faults), pytest.raises(SystemExit) as end:
            cli.main()
        found = {row["check"]: row["found"] for row in json.loads(capsys.readouterr().out)}["create-only writes"]
        assert (end.value.code or 0) == code
        assert ("a second create of one name is refused" in found) is (code == 0)
        assert "a second multipart create overwrites" in found
