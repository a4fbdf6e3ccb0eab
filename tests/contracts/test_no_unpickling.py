"""Nothing that lies in a store, a dataset or a configuration is executed by being read."""

from __future__ import annotations

import ast
import io
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from cluster.errors import SecateurError
from cluster.fingerprint import sha256
from cluster.record import Part, Seal, Unit
from cluster.storage import Store
from flows import cli
from flows.config import load_config, parse_config
from tasks.checkpoints import decode_state, encode_state, load_sealed
from tasks.proxy import checkpoint_part
from tasks.subset import SubsetDataset
from tasks.tables import decode_table, part_check
from tasks.work import Work
from tests.flows.verify_case import made, parts, plan, seals

pytestmark = [pytest.mark.xdist_group("verify"), pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
# The driver's own payloads, sent to its own workers over Ray: the one place where objects travel as pickles.
OVER_RAY = {"cluster/host.py", "cluster/launcher.py"}
NEVER = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load", "cloudpickle.loads", "ray.cloudpickle.load",
    "ray.cloudpickle.loads", "marshal.load", "marshal.loads", "shelve.open", "dill.load", "dill.loads", "joblib.load",
    "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "yaml.unsafe_load_all", "yaml.full_load_all",
    "pandas.read_pickle", "pd.read_pickle", "eval", "exec", "os.system", "os.popen", "torch.jit.load", "torch.package",
    "runpy.run_path", "runpy.run_module", "pa.deserialize", "pyarrow.deserialize",
}  # fmt: skip
# These are safe with one argument only.
ONLY_WITH = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False), "numpy.load": ("allow_pickle", False)}


def _calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Yield the dotted name of every call."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            words, place = [], node.func
            while isinstance(place, ast.Attribute):
                words.append(place.attr)
                place = place.value
            if isinstance(place, ast.Name):
                yield ".".join(reversed([*words, place.id])), node


def unsafe_calls(source: str) -> list[str]:
    """Return the calls in Python source that can execute what they read."""
    tree = ast.parse(source)
    found = []
    for name, call in _calls(tree):
        given = {word.arg: getattr(word.value, "value", None) for word in call.keywords}
        wanted = ONLY_WITH.get(name)
        if name in NEVER or (wanted is not None and given.get(wanted[0]) is not wanted[1]) or given.get("shell") is True:
            found.append(f"line {call.lineno}: {name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in ("pickle", "marshal", "shelve", "dill", "joblib", "cloudpickle"):
            found.append(f"line {node.lineno}: from {node.module}")
    return found


def test_no_code_of_ours_can_execute_what_it_reads() -> None:
    files = [path for package in ("flows", "tasks", "cluster") for path in sorted((ROOT / package).rglob("*.py"))]
    assert len(files) > 80
    found = {str(path.relative_to(ROOT)): unsafe_calls(path.read_text()) for path in files}
    assert {name for name, calls in found.items() if calls} == OVER_RAY, {n: c for n, c in found.items() if c}


@pytest.mark.parametrize(
    "line",
    [
        "pickle.loads(x)", "torch.load(x)", "torch.load(x, weights_only=False)", "np.load(x)", "np.load(x, allow_pickle=True)",
        "yaml.load(x, yaml.Loader)", "eval(x)", "ray.cloudpickle.loads(x)", "subprocess.run(x, shell=True)",
        "from pickle import loads",
    ],
)  # fmt: skip
def test_the_search_finds_what_it_must(line: str) -> None:
    assert unsafe_calls(line)


class Trap:
    """Write a file when unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return exec, (f"open({str(self.canary)!r}, 'w').close()",)


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """Give the file that a trap writes; the trap works, and no test may have sprung one."""
    path = tmp_path / "canary"
    pickle.loads(pickle.dumps(Trap(path)))
    assert path.exists()
    path.unlink()
    yield path
    assert not path.exists(), "a planted pickle was executed"


def _torch(trap: object) -> bytes:
    sink = io.BytesIO()
    torch.save({"key": "k", "step": 1, "model": trap}, sink)
    return sink.getvalue()


def _old_torch(trap: object) -> bytes:
    sink = io.BytesIO()
    torch.save({"key": "k", "step": 1, "model": trap}, sink, _use_new_zipfile_serialization=False)
    return sink.getvalue()


def _npy(trap: object) -> bytes:
    sink = io.BytesIO()
    np.save(sink, np.array([trap], dtype=object), allow_pickle=True)
    return sink.getvalue()


def _parquet(trap: object) -> bytes:
    """Return a table whose metadata says that a column is of a type to be unpickled."""
    sink = pa.BufferOutputStream()
    pickled = pickle.dumps(trap)
    field = pa.field("example_id", pa.int64(), metadata={
        b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": pickled,
    })  # fmt: skip
    schema = pa.schema([field], metadata={b"secateur": pickled, b"pandas": pickled})
    pq.write_table(pa.table([pa.array([1, 2])], schema=schema), sink)
    return bytes(sink.getvalue())


PLANTED: dict[str, Callable[[object], bytes]] = {
    "a pickle": pickle.dumps, "a checkpoint": _torch, "an old checkpoint": _old_torch, "an array": _npy, "a table": _parquet,
}  # fmt: skip


@pytest.mark.parametrize("kind", PLANTED)
def test_planted_bytes_are_refused_wherever_bytes_are_decoded(kind: str, canary: Path, tmp_path: Path) -> None:
    data = PLANTED[kind](Trap(canary))
    with pytest.raises(SecateurError):
        decode_state(data, "here")
    with pytest.raises(SecateurError):
        part_check("k", "here")(data)
    if kind != "a table":
        with pytest.raises(SecateurError):
            decode_table(data, "here")
    with pytest.raises(SecateurError):
        Seal.from_bytes(data, "here")
    unit = Unit(Store(str(tmp_path / "store")), "proxy", "k")
    work = Work(unit, "model")
    unit.store.create(f"{work.folder}/other/step-00000007.pt", data)
    assert work.newest() is None
    path = tmp_path / "config.yaml"
    path.write_bytes(data)
    with pytest.raises(SecateurError):
        load_config(str(path))


@pytest.mark.parametrize("kind", PLANTED)
def test_a_forger_who_owns_seal_and_part_executes_nothing(kind: str, canary: Path, tmp_path: Path) -> None:
    """The seal vouches for planted bytes: everything that reads them must still only decode."""
    store = made(tmp_path)
    place = Store(str(store))
    data = PLANTED[kind](Trap(canary))
    tables = [(stage, ".parquet") for stage in ("score", "train", "subset", "features")]
    for stage, suffix in [("proxy", ".pt"), ("subset", ".npy"), ("features", ".npy"), *tables]:
        path = parts(store, stage, suffix)[0]
        path.write_bytes(data)
        seal_path = next(one for one in seals(store, stage) if one.parent == path.parent.parent)
        old = Seal.from_bytes(seal_path.read_bytes(), "")
        name = str(path.relative_to(store))
        listed = [Part(name, part.rows, len(data), sha256(data)) if part.name == name else part for part in old.parts]
        seal_path.write_bytes(Seal(old.stage, old.key, listed, old.meta).to_bytes())
    proxy = Unit(place, "proxy", plan().proxies[0]).seal()
    assert proxy is not None
    with pytest.raises(SecateurError):
        load_sealed(place, proxy, 1.0)
    key = next(iter(plan().selections.values()))[0]
    subset = Unit(place, "subset", plan().subset(key))
    try:
        dataset = SubsetDataset(f"{place.uri}/{subset.folder}")
        dataset[0]
    except (SecateurError, ValueError, OSError, KeyError):
        # How it refuses is its own matter; the canary tells whether it executed.
        pass
    for words in (["verify", "--heal"], ["report"], ["show"], ["status"]):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["secateur", words[0], plan().run_name, *words[1:], "--store", str(store)])
            with pytest.raises(SystemExit):
                cli.main()


def test_checkpoints_hold_no_objects(tmp_path: Path) -> None:
    with pytest.raises(SecateurError, match="cannot be kept"):
        encode_state({"key": "k", "made": Trap(tmp_path / "x")})
    assert checkpoint_part(1.0).endswith(".pt")


def test_user_code_runs_only_where_the_configuration_names_it(tmp_path: Path) -> None:
    """Planning reads user code and imports none; building a model imports what is named and nothing beside it."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("named_here", "beside_it"):
        (folder / f"{name}.py").write_text(
            f"open({str(tmp_path / name)!r}, 'w').close()\nimport torch\n"
            "def net(input_shape, num_classes):\n    return torch.nn.Linear(input_shape[0], num_classes)\n"
        )
    sets = [f"code=[{folder}]", "train.model={use: 'named_here:net'}"]
    before = list(sys.path)
    try:
        from flows.plan import make_plan
        from tasks.models.build import build_model

        config = load_config(str(ROOT / "configs/quickstart.yaml"), sets)
        make_plan(config)
        parse_config(config.model_dump(mode="json"))
        assert {path.name for path in tmp_path.iterdir()} == {"mine"}
        build_model(config.train.model, (4,), 2, 0)
        assert {path.name for path in tmp_path.iterdir()} == {"mine", "named_here"}
    finally:
        sys.path[:] = before
