"""Configurations, arguments and objects of the store that make no sense: one message, no traceback, nothing written."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from cluster.errors import InputError
from cluster.fingerprint import canonical_json
from cluster.storage import Store
from flows import cli
from flows.config import RunConfig, load_config
from tests.flows.verify_case import config as small_config
from tests.flows.verify_case import edit_seal, made, plan, seals, tree

pytestmark = [pytest.mark.xdist_group("verify"), pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
QUICKSTART = str(ROOT / "configs/quickstart.yaml")
TEXT = Path(QUICKSTART).read_text()


def command(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Run the command in this process and return (exit code, standard output, standard error)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["secateur", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    code = ended.value.code
    assert code is None or isinstance(code, int)
    return code or 0, *capsys.readouterr()


def refused(said: tuple[int, str, str], *codes: int) -> str:
    """Assert that a command ended with one of the codes and one line, and return the line."""
    code, out, error = said
    assert code in codes and out == "", said
    assert error.startswith("secateur: ") and error.count("\n") == 1 and "Traceback" not in error, error
    return error


BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi")
)
FILES: dict[str, bytes] = {
    "empty": b"",
    "null": b"null\n",
    "a text": b"hello\n",
    "a number": b"3\n",
    "a list": b"- a\n",
    "NUL": b"\x00",
    "not UTF-8": b"name: \xff\xfe\n",
    "UTF-16": TEXT.encode("utf-16"),
    "binary": bytes(range(256)),
    "open bracket": b"a: [1\n",
    "tab": b"a:\n\t- b\n",
    "two documents": TEXT.encode() + b"---\nname: other\n",
    "a Python object": b"name: !!python/object/apply:os.system ['true']\n",
    "a Python name": b"name: !!python/name:os.system\n",
    "an unknown tag": b"name: !mine x\n",
    "alias bomb": BOMB.encode(),
    "alias bomb in a setting": (TEXT + f"code: {{{BOMB.replace(chr(10), ', ')}}}").encode(),
    "cyclic list": b"name: &a [*a]\n",
    "cyclic mapping": b"&a\nname: *a\n",
    "unknown anchor": b"name: *nowhere\n",
    "duplicate key": (TEXT + "name: again\n").encode(),
    "duplicate key below": TEXT.replace("  seeds: 3", "  seeds: 3\n  seeds: 4").encode(),
    "deep": b"name: " + b"[" * 3000,
    "deep but whole": b"name: " + b"[" * 300 + b"]" * 300,
    "no such date": b"name: 2020-13-45\n",
    "a date": b"name: 2020-01-01\n",
    "a set": b"name: !!set {a, b}\n",
    "bytes": b"name: !!binary aGVsbG8=\n",
    "a key that is a list": b"? [a]\n: b\n",
    "a key that is a number": (TEXT + "3: x\n").encode(),
    "a key that is null": (TEXT + "~: x\n").encode(),
    "digits without end": b"seed: " + b"9" * 6000,
    "sexagesimal": (TEXT.replace("seed: 0", "seed: 1:2:3:4:5:6:7:8:9:10:11:12:13")).encode(),
    "a huge file": b"# " + b"x" * 2**21,
    "a lone surrogate": b'name: "\\ud800"\n',
    "merge of a text": b"<<: text\nname: x\n",
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_no_configuration(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(FILES[name])
    line = refused(command(capsys, "run", str(path), "--store", str(tmp_path / "store")), 2)
    assert len(line) < 1000
    assert [entry.name for entry in tmp_path.iterdir()] == ["config.yaml"]


PATHS: dict[str, Callable[[Path], str]] = {
    "missing": lambda folder: str(folder / "none.yaml"),
    "a folder": str,
    "below a file": lambda folder: f"{QUICKSTART}/x",
    "empty name": lambda folder: "",
    "a NUL in the name": lambda folder: "a\0b",
    "a name without end": lambda folder: "x" * 5000,
    "a device": lambda folder: "/dev/null",
}


@pytest.mark.parametrize("name", PATHS)
def test_places_where_no_configuration_is(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(command(capsys, "plan", PATHS[name](tmp_path), "--store", str(tmp_path / "store")), 2)
    assert list(tmp_path.iterdir()) == []


def _places(body: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the place of every mapping and value in a configuration."""
    for name, item in body.items() if isinstance(body, dict) else enumerate(body) if isinstance(body, list) else ():
        yield (*place, str(name))
        yield from _places(item, (*place, str(name)))


def _fields(model: type[BaseModel], place: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the place of every field of the root specification that is not within a list."""
    for name, field in model.model_fields.items():
        yield (*place, name)
        kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _fields(kind, (*place, name))


EVERY_FIELD = sorted(set(_fields(RunConfig)))
MAPPINGS = sorted({place[:-1] for place in _places(yaml.safe_load(TEXT)) if not place[-1].isdigit()})
# A text where only a number fits, and so on: no field takes all of them.
WRONG = ("{made: {up: [1]}}", "[[[]]]", "[1, {a: 2}]", "!!binary aGVsbG8=", "'\u2603'", "-1e400", ".nan", "true", "-7")


@pytest.mark.parametrize("place", MAPPINGS, ids=".".join)
def test_unknown_keys_are_named_at_every_level(place: tuple[str, ...]) -> None:
    key = ".".join((*place, "no_such_setting"))
    if place[-1:] == ("args",):
        return
    with pytest.raises(InputError, match=r"no_such_setting") as caught:
        load_config(QUICKSTART, [f"{key}=1"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", EVERY_FIELD, ids=".".join)
def test_values_that_fit_no_field(place: tuple[str, ...]) -> None:
    """Of nine values of all types no field takes all; each refused one gets one short message."""
    refusals = 0
    for value in WRONG:
        try:
            load_config(QUICKSTART, [f"{'.'.join(place)}={value}"])
        except InputError as error:
            refusals += 1
            assert "\n" not in str(error) and 10 < len(str(error)) < 600, str(error)
    assert refusals > 0


LIMITS = {
    "seed": ("-1", "1.5", "9223372036854775808", "1e400"),
    "name": ("..", "/abs", "a/b", "''", "'a b'", "<script>", "x" * 60, "-x", ".hidden", "'a\\u0000'"),
    "select.keep": ("0", "-0.1", "1.0000001", "[0.2, 0.2]", "[]", "true", ".inf", "null", "x"),
    "train.replicates": ("0", "-1", "1000000000", "1.5", "null", "true"),
    "proxy.seeds": ("0", "1000000000", "-3"),
    "train.steps": ("0", "-1", "0.5", "null", "true"),
    "train.batch_size": ("0", "-1", "x"),
    "proxy.lr": ("0", "-1", ".inf", ".nan", "true"),
    "data.validation": ("-0.1", "1", "2", ".nan"),
    "data.test_fraction": ("0", "1", "-1", "true"),
    "data.num_classes": ("0", "1", "1.5", "100000000", "x"),
    "data.shard_rows": ("0", "-5", "x"),
    "score.forward_rows": ("0", "15", "x"),
    "score.scores": ("[]", "null", "[el2n, el2n]", "[nope]", "['el2n@0']", "['el2n@2']", "['el2n@x']", "['aum@0.5']"),
    "select.arms": ("[]", "null", "[{}]", "[1]", "[{protocol: exact, score: el2n, alpha: 2}]",
                    "[{protocol: random}]", "[{name: full, protocol: topk, score: el2n}]"),
    "proxy.numerics.device": ("tpu", "cuda:0", "''"),
    "proxy.resources.cpus": ("0", "-1", ".nan"),
    "proxy.resources.gpus": ("-1", ".nan"),
    "train.model": ("{use: mlp, args: {x: !!binary gAE=}}", "{use: mlp, args: {x: 2020-01-01}}", "{use: mlp, args: {x: .nan}}",
                    "{use: mlp, args: {x: !!set {a}}}", "{use: mlp, args: {1: x, '1': y}}"),
    "code": ("[/no/such/folder]", "[configs/quickstart.yaml]", "x", "[1]", "[cluster/..]"),
    "data.source": ("no_such", "'no.such:thing'", "':'", "'a:'", "{use: sklearn, args: {x: 1}}"),
    "data.train": ("no_such_set", "../../etc", "''", "null", "'\\u0000'"),
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in LIMITS.items() for value in values])
def test_values_out_of_range(key: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "store"
    text = f"{key}={value}" if not value.startswith(("'", "[", "{")) or value[0] != "'" else f'{key}="{value[1:-1]}"'
    refused(command(capsys, "plan", QUICKSTART, "--set", text, "--store", str(store)), 2)
    assert not store.exists()


ARGUMENTS = [
    ["run"], ["plan"], ["show"], ["report"], ["resume"], ["verify"], ["select"], ["deploy"], ["nope"], ["--nope"],
    ["run", QUICKSTART, "--nope"], ["run", QUICKSTART, "extra"], ["run", QUICKSTART, "--set"],
    ["run", QUICKSTART, "--set", "x"], ["run", QUICKSTART, "--set", "=x"], ["run", QUICKSTART, "--set", "a..b=1"],
    ["run", QUICKSTART, "--set", "seed=[1"], ["run", QUICKSTART, "--set", "select.arms.x.alpha=1"],
    ["run", QUICKSTART, "--set", "select.arms.99.alpha=1"], ["run", QUICKSTART, "--set", "name.x=1"],
    ["run", QUICKSTART, "--set", "score.scores.0.x=1"], ["run", QUICKSTART, "--set", "score.scores.0.x.y=1"],
    ["run", QUICKSTART, "--set", "select.keep=[0.1,0.2]", "--set", "select.keep.0.x=1"],
    ["run", QUICKSTART, "--set", f"select.arms.{'9' * 5000}.alpha=1"],
    ["run", QUICKSTART, "--store", ""], ["run", QUICKSTART, "--store", "ftp://x/y"], ["run", QUICKSTART, "--store", "s3://"],
    ["run", QUICKSTART, "--store", "s3://a"], ["run", QUICKSTART, "--store", QUICKSTART],
    ["run", QUICKSTART, "--store", f"{QUICKSTART}/below"], ["run", QUICKSTART, "--store", "/proc/nope"],
    ["run", QUICKSTART, "--ray", "nowhere"], ["run", QUICKSTART, "--ray", "127.0.0.1:1"], ["run", QUICKSTART, "--ray", ""],
    ["run", QUICKSTART, "--json=x"], ["show", ""], ["show", "../../etc"], ["show", "no-such-run"], ["status", "no-such-run"],
    ["verify", "no-such-run"], ["verify", "../x", "--heal"], ["report", "nope"], ["resume", "nope"],
    ["select", "no/such.parquet", "--score", "s", "--direction", "high", "--keep", "0.5", "--out", "OUT"],
    ["select", QUICKSTART, "--score", "s", "--direction", "high", "--keep", "0.5", "--out", "OUT"],
    ["select", QUICKSTART, "--score", "s", "--direction", "up", "--keep", "0.5", "--out", "OUT"],
    ["select", QUICKSTART, "--score", "s", "--direction", "high", "--keep", "x", "--out", "OUT"],
    ["select", QUICKSTART, "--score", "s", "--direction", "high", "--keep", "2", "--out", "OUT"],
    ["select", QUICKSTART, "--score", "s", "--direction", "high", "--keep", "nan", "--out", "OUT"],
    ["select", QUICKSTART, "--score", "s", "--direction", "high", "--keep", "0.5", "--alpha", "7", "--out", "OUT"],
    ["select", QUICKSTART, "--score", "s", "--direction", "high", "--keep", "0.5", "--param", "gamma", "--out", "OUT"],
    ["select", QUICKSTART, "--score", "s", "--direction", "high", "--keep", "0.5", "--param", "nope=1", "--out", "OUT"],
    ["select", QUICKSTART, "--score", "s", "--direction", "high", "--keep", "0.5", "--protocol", "no", "--out", "OUT"],
    ["select", QUICKSTART, "--score", "s", "--direction", "high", "--keep", "0.5", "--seed", "x", "--out", "OUT"],
    ["deploy", "no/such.yaml"],
]  # fmt: skip


@pytest.mark.parametrize("words", ARGUMENTS, ids=lambda words: " ".join(str(word)[-24:] for word in words))
def test_arguments_that_make_no_sense(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECATEUR_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(ROOT)
    words = [str(tmp_path / "out.parquet") if word == "OUT" else word for word in words]
    refused(command(capsys, *words), 2)
    assert list(tmp_path.iterdir()) == [] and "ray" not in {name for name in sys.modules if name == "ray.worker"}


RUN = f"runs/{plan().run_name}"
OBJECTS = {
    "run.json": lambda store: store / RUN / "run.json",
    "report seal": lambda store: store / RUN / "report" / "seal.json",
    "results": lambda store: store / RUN / "report" / "results.json",
    "seal of shard": lambda store: seals(store, "shard")[0],
    "seal of score": lambda store: seals(store, "score")[0],
    "seal of train": lambda store: seals(store, "train")[0],
}
CONTENTS: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda old: b"",
    "truncated": lambda old: old[: len(old) // 2],
    "a list": lambda old: b"[]",
    "null": lambda old: b"null",
    "a number": lambda old: b"7",
    "an empty mapping": lambda old: b"{}",
    "binary": lambda old: bytes(range(256)),
    "endless": lambda old: b"[" * 100_000,
    "of other types": lambda old: canonical_json({"run": [], "config": [], "keys": 3, "versions": None, "sha256": 1, "parts": 2}),
    "twice": lambda old: old + old,
    "another version": lambda old: old.replace(b'"config"', b'"configuration"').replace(b'"parts"', b'"pieces"')
    .replace(b'"sha256"', b'"blake3"').replace(b'"accuracy"', b'"precision"'),
}  # fmt: skip


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("name", OBJECTS)
def test_objects_of_the_store_that_make_no_sense(
    name: str, content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = made(tmp_path)
    path = OBJECTS[name](store)
    path.write_bytes(CONTENTS[content](path.read_bytes()))
    before = tree(store)
    place = ["--store", str(store)]
    for words in (["show"], ["status"], ["report"], ["resume"], ["verify"]):
        code, out, error = command(capsys, words[0], plan().run_name, *place)
        assert code in (0, 1, 2) and "Traceback" not in error + out, (words, error)
        if words == ["verify"] and name != "run.json":
            assert code == 1 and str(path.relative_to(store)) in out
        elif words == ["status"] and name.startswith("seal"):
            assert code == 1 and "1 damaged" in out and error.count("\n") == 1
        elif name == "run.json" or (name.startswith("seal") and words[0] in ("report", "resume")):
            refused((code, out, error), 1)
        if words == ["report"] and code == 0:
            before |= {n: d for n, d in tree(store).items() if "/report/" in n}
            break
    assert tree(store) == before


def test_a_seal_whose_digest_is_forged_but_whose_facts_are_gone_ends_in_a_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = made(tmp_path)
    edit_seal(seals(store, "shard")[0], lambda body: body.update(parts=[]), forge=True)
    code, _, error = command(capsys, "report", plan().run_name, "--store", str(store))
    assert code in (0, 1) and "Traceback" not in error


OBJECT = "stages/select-0123456789ab/part.parquet"


@pytest.mark.parametrize(
    "out",
    [
        "S/" + OBJECT, "S/stages/./select-0123456789ab/part.parquet", "S/stages//select-0123456789ab/part.parquet",
        "S/runs/../" + OBJECT, "file://S/stages/./select-0123456789ab/part.parquet", "link/part.parquet",
        "S/stages/select-0123456789ab/out.parquet", "S/stages/out.parquet", "S/runs/out.parquet", "S/large/out.parquet",
        "S/tmp/out.parquet", "S/retired/20260101T000000Z-01234567/" + OBJECT, "inside/part.parquet", "inside/./part.parquet",
        "s3://bucket/x/" + OBJECT, "s3://bucket/x/stages/./select-0123456789ab/p", "s3://bucket/x/stages//select-0123456789ab/p",
        "s3://bucket/retired/20260101T000000Z-01234567/run.json", "s3://bucket/runs/a-0123456789ab/../a-0123456789ab/run.json",
    ],
)  # fmt: skip
def test_a_selection_is_not_written_into_a_store(
    out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "S"
    sealed = root / OBJECT
    for folder in ("runs", "large", "tmp", "retired/20260101T000000Z-01234567/stages/select-0123456789ab"):
        (root / folder).mkdir(parents=True)
    sealed.parent.mkdir(parents=True)
    sealed.write_bytes(b"sealed")
    (tmp_path / "link").symlink_to(sealed.parent)
    before = tree(tmp_path)
    # What "inside" means is a path from within the object's own folder.
    monkeypatch.chdir(sealed.parent if out.startswith("inside/") else tmp_path)
    out = out.removeprefix("inside/").replace("file://S", f"file://{root}")
    words = ["select", str(tmp_path / "none.parquet"), "--score", "s", "--direction", "high", "--keep", "0.5", "--out", out]
    assert "lies in a store" in refused(command(capsys, *words), 2)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("out", ["tmp/out.parquet", "runs/out.parquet", "S/out.parquet", "large/stages/out.parquet"])
def test_a_selection_beside_a_store_is_not_taken_for_one(
    out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "S" / OBJECT).parent.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    words = ["select", str(tmp_path / "none.parquet"), "--score", "s", "--direction", "high", "--keep", "0.5", "--out", out]
    assert "lies in a store" not in refused(command(capsys, *words), 2)


def test_names_cannot_leave_the_store(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    from cluster.errors import StoreError

    for name in ("../x", "/etc/passwd", "a/../../x", "a//b", ".hidden", "a/.b", "a\0b", "a\nb", "", "a/", "~/x", "a b", "C:\\x"):
        for act in (store.read, store.exists, store.list, store.remove, store.open, store.url):
            with pytest.raises(StoreError, match="refused"):
                act(name)
        with pytest.raises(StoreError, match="refused"):
            store.create(name, b"")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    "setting",
    [
        "data.train=s3://user:pass@host/key", "data.train=https://h/x?X-Amz-Signature=abc123",
        "code_version=AKIAABCDEFGHIJKLMNOP",
        "data.source={use: parquet, args: {token: ghp_0123456789abcdefghij0123}}", "select.arms.0.name='Bearer abcdefghijkl'",
        "data.train=${AWS_SECRET_ACCESS_KEY}", "data.train=x${MY_TOKEN}", "select.arms.0.name=canary-in-the-mine",
    ],
)  # fmt: skip
def test_secrets_are_refused_and_not_told(
    setting: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "MY_TOKEN"):
        monkeypatch.setenv(name, "canary-in-the-mine")
    path = tmp_path / "config.yaml"
    body = yaml.safe_load(TEXT)
    path.write_text(yaml.safe_dump(body))
    line = refused(command(capsys, "run", str(path), "--set", setting, "--store", str(tmp_path / "store")), 2)
    for secret in ("canary-in-the-mine", "user:pass", "abc123", "AKIAABCDEFGHIJKLMNOP", "ghp_0123", "abcdefghijkl"):
        assert secret not in line
    assert not (tmp_path / "store").exists()


def test_a_whole_small_configuration_is_taken() -> None:
    assert small_config().name == "quickstart"
