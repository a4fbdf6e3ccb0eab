"""The command: exit codes, one message on wrong input, nothing written, light start-up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import InputError
from cluster.storage import Store
from flows import cli
from flows.config import load_config
from flows.plan import make_plan
from tasks.pool import SerialPool
from tests.flows.serial_run import run_serially
from tests.flows.verify_case import edit_seal, made, seals, tree
from tests.flows.verify_case import plan as small_plan

ROOT = Path(__file__).parents[2]
QUICKSTART = str(ROOT / "configs/quickstart.yaml")
SMALL = ("proxy.epochs=1", "train.steps=5", "train.replicates=2", "score.scores=[el2n]", "proxy.seeds=2")


def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Run the command in this process and return (exit code, standard output, standard error)."""
    monkeypatch.setattr(sys, "argv", ["secateur", *words])
    code = 0
    try:
        cli.main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    out, error = capsys.readouterr()
    return code, out, error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "no/such/file.yaml"], "cannot be read"),
        (["run", QUICKSTART, "--set", "select.kep=0.1"], "did you mean 'keep'"),
        (["run", QUICKSTART, "--set", "data.train=digit"], "digits"),
        (["run", QUICKSTART, "--set", "data.source=parquet", "--set", "data.train=/no/such/data"], "/no/such/data"),
        (["run", QUICKSTART, "--set", "train.model.use=mlpp"], "mlp"),
        (["run", QUICKSTART, "--set", "train.model.use=nowhere:Net"], "nowhere"),
        (["run", QUICKSTART, "--ray", "127.0.0.1:1"], "127.0.0.1:1"),
        (["run", QUICKSTART, "--store", "/proc/no"], "cannot be written"),
        (["run", QUICKSTART, "--store", "gopher://x"], "scheme"),
        (["run", QUICKSTART, "--store", "s3:/bucket"], "scheme"),
        (["run", QUICKSTART, "--set", "train.resources.gpus=0.3"], "divide 1"),
        (["run", QUICKSTART, "--set", "proxy.recipe={loss: {use: 'um:loss', args: {db_password: hunter2x}}}"], "'db_password'"),
        (["resume", "nothing"], "no run 'nothing'"),
        (["show", "nothing"], "no run 'nothing'"),
        (["plan", QUICKSTART, "--set", "seed=x"], "seed"),
    ],
)
def test_wrong_input_gets_code_2_one_message_and_no_write(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    if "--store" not in words:
        words = [*words, "--store", str(store)]
    code, out, error = command(monkeypatch, capsys, *words)
    assert code == 2, error
    assert message in error and error.startswith("secateur: ") and error.count("\n") == 1
    assert out == "" and not store.exists()


def test_nan_features_are_refused_by_the_whole_command(tmp_path: Path) -> None:
    rows = np.zeros((60, 3), dtype=np.float32)
    rows[41, 1] = np.nan
    table = pa.table({"a": rows[:, 0], "b": rows[:, 1], "c": rows[:, 2], "label": np.arange(60) % 2})
    pq.write_table(table, tmp_path / "data.parquet")
    sets = ["data.source={use: parquet, args: {features: [a, b, c]}}", f"data.train={tmp_path}/data.parquet"]
    run = subprocess.run(
        [sys.executable, "-m", "flows.cli", "run", QUICKSTART, "--store", str(tmp_path / "store"),
         *(word for text in sets for word in ("--set", text))],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert run.returncode == 2, run.stderr
    message, row = run.stderr.splitlines()
    assert message.startswith("secateur: 1 of 60 rows are bad") and row.startswith("  non_finite_feature        1  "), run.stderr
    assert run.stdout == "" and not (tmp_path / "store").exists()


def test_resources_that_no_node_has_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    store = tmp_path / "store"
    run = subprocess.run(
        [sys.executable, "-m", "flows.cli", "run", QUICKSTART, "--store", str(store), "--set", "train.resources.cpus=1000"],
        cwd=ROOT, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert run.returncode == 2 and run.stdout == "", run.stderr
    assert "secateur: train: a worker needs 1000 CPU" in run.stderr.splitlines()[-1]
    assert not store.exists()


def test_a_finished_run_is_shown_without_ray_or_prefect(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    plan = make_plan(load_config(QUICKSTART, SMALL))
    expected = run_serially(plan, Store(str(store)), SerialPool())
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    sets = [word for text in SMALL for word in ("--set", text)]
    code, out, error = command(monkeypatch, capsys, "run", QUICKSTART, "--store", str(store), *sets, "--json")
    assert code == 0 and json.loads(out) == expected
    assert "is finished" in error
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == before
    code, out, _ = command(monkeypatch, capsys, "show", plan.run_name, "--store", str(store))
    assert code == 0 and "report: " in out and "random" in out
    code, out, _ = command(monkeypatch, capsys, "plan", QUICKSTART, "--store", str(store), *sets, "--json")
    assert code == 0 and all(stage["left"] == 0 for stage in json.loads(out)["stages"])
    changed = [*sets, "--set", "select.keep=0.3"]
    code, out, _ = command(monkeypatch, capsys, "plan", QUICKSTART, "--store", str(store), *changed, "--json")
    document = json.loads(out)
    assert {stage["stage"] for stage in document["stages"] if stage["left"]} == {"select", "subset", "shift", "train"}
    assert document["changed"] == ["select", "shift", "train"]
    code, out, _ = command(monkeypatch, capsys, "status", "--store", str(store), "--json")
    assert code == 0 and json.loads(out)[0]["run"] == plan.run_name
    record = store / "runs" / plan.run_name / "run.json"
    data = record.read_bytes()
    record.unlink()
    code, _, error = command(monkeypatch, capsys, "verify", plan.run_name, "--store", str(store))
    assert code == 2 and "has lost its run.json" in error
    code, _, error = command(monkeypatch, capsys, "run", QUICKSTART, "--store", str(store), *sets)
    assert code == 0 and "recorded anew" in error and record.read_bytes() == data


@pytest.mark.parametrize("words", [["--help"], ["plan", QUICKSTART, "--store", "STORE"]])
def test_help_and_plan_import_nothing_heavy(words: list[str], tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv[0] = 'secateur'\n"
        "from flows.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'ray', 'prefect', 'pyarrow', 'sklearn', 'scipy', 's3fs'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    words = [str(tmp_path) if word == "STORE" else word for word in words]
    run = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(("steps", "refused"), [(30, True), (31, False)])
def test_dynamics_need_a_whole_epoch(tmp_path: Path, steps: int, refused: bool) -> None:
    sets = [*SMALL, "score.scores=[el2n, aum]", "proxy.epochs=null", f"proxy.steps={steps}"]
    plan = make_plan(load_config(QUICKSTART, sets))
    store = tmp_path / "store"
    if refused:
        with pytest.raises(InputError, match=r"aum read the training of every example.*30 steps and one pass takes 31"):
            run_serially(plan, Store(str(store)), SerialPool())
        assert not store.exists()
    else:
        run_serially(plan, Store(str(store)), SerialPool())


def test_resume_with_a_broken_seal_ends_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    store = made(tmp_path)
    for path in (store / "runs" / small_plan().run_name / "report").iterdir():
        path.unlink()
    seals(store, "train")[0].unlink()
    edit_seal(seals(store, "score")[0], lambda body: body["meta"].update(num_rows=1))
    before = tree(store)

    def started(*_: object) -> None:
        raise AssertionError("it went on to start Prefect and Ray")

    monkeypatch.setattr("flows.execute.run_flow_here", started)
    code, out, error = command(monkeypatch, capsys, "resume", small_plan().run_name, "--store", str(store))
    assert code == 1 and out == "" and error.count("\n") == 1 and "does not match its own digest" in error
    assert tree(store) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [(["plan"], "Missing argument 'CONFIG'"), (["pln"], "No such command"), (["plan", "x", "--sett"], "--sett")],
)
def test_wrong_usage_is_one_line(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, error = command(monkeypatch, capsys, *words)
    assert code == 2 and out == "" and error.count("\n") == 1 and message in error and "--help" in error


def test_a_fault_of_user_code_is_told_without_secrets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fault(*_: object) -> None:
        raise RuntimeError("cannot reach https://user:hunter2@host/?token=hunter2")

    monkeypatch.setattr("flows.show.show_status", fault)
    code, out, error = command(monkeypatch, capsys, "status")
    assert code == 1 and out == "" and "hunter2" not in error and "RuntimeError: cannot reach https://<credentials>@host" in error


@pytest.mark.parametrize("name", ["stages/score-0123456789ab/parts/a.parquet", "runs/tiny-0123456789ab/out.parquet"])
def test_a_selection_is_not_written_into_a_store(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pq.write_table(pa.table({"id": np.arange(9), "s": np.arange(9.0)}), tmp_path / "scores.parquet")
    words = ["--score", "s", "--direction", "high", "--keep", "0.3", "--alpha", "0.5", "--out", str(tmp_path / name)]
    code, _, error = command(monkeypatch, capsys, "select", str(tmp_path / "scores.parquet"), *words)
    assert code == 2 and "lies in a store" in error and not (tmp_path / name).parent.exists()


LONG = "p" * 300
SELECT = ["select", "SCORES", "--score", "s", "--direction", "high", "--keep", "0.5", "--alpha", "0.5", "--out"]


@pytest.mark.parametrize(
    "words",
    [
        ["plan", QUICKSTART, "--set", "data.source=parquet", "--set", f"data.train={LONG}"],
        ["run", QUICKSTART, "--set", "data.source=parquet", "--set", f"data.train=/tmp/{LONG}/x.parquet"],
        ["plan", QUICKSTART, "--set", f"code=[{LONG}]"], ["run", QUICKSTART, "--store", LONG], ["status", "--store", LONG],
        [*SELECT, f"{LONG}.parquet"],
    ],
)  # fmt: skip
def test_a_name_that_no_file_may_have_is_wrong_input(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("SECATEUR_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    pq.write_table(pa.table({"id": np.arange(9), "s": np.arange(9.0)}), tmp_path / "scores.parquet")
    code, out, error = command(monkeypatch, capsys, *["scores.parquet" if word == "SCORES" else word for word in words])
    assert (code, out, error.count("\n")) == (2, "", 1) and "ppp... is longer than" in error
    assert [path.name for path in tmp_path.iterdir()] == ["scores.parquet"]


def test_an_empty_run_is_no_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, error = command(monkeypatch, capsys, "verify", "", "--recompute", "--store", str(tmp_path))
    assert code == 2 and "RUN is empty" in error
