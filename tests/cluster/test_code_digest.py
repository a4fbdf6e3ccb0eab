"""The digest of user code: what changes it, what does not, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cluster.code_digest import code_digest
from cluster.errors import InputError

FILES = {
    "entry.py": "import json\nimport numpy as np\nfrom pack import part\nfrom pack.deep.leaf import value\n\n"
    "def run():\n    return value\n",
    "pack/__init__.py": "",
    "pack/part.py": "from . import sibling\nfrom .deep import leaf as other\n",
    "pack/sibling.py": "X = 1\n",
    "pack/deep/__init__.py": "from ..sibling import X\n",
    "pack/deep/leaf.py": "value = 3\n",
    "space/inner.py": "from space import more\n",
    "space/more.py": "Y = 2\n",
    "uses_space.py": "import space.inner\n",
    "lazy.py": "def run():\n    import importlib\n    return importlib.import_module('named')\n",
    "named.py": "Z = 1\n",
    "unrelated.py": "Z = 1\n",
}


@pytest.fixture
def code(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("entry", "file", "text", "changed"),
    [
        ("entry:run", "entry.py", FILES["entry.py"].replace("return value", "return value + 1"), True),
        ("entry:run", "pack/sibling.py", "X = 2\n", True),
        ("entry:run", "pack/deep/leaf.py", "value = 4\n", True),
        ("entry:run", "pack/__init__.py", "W = 1\n", True),
        ("entry:run", "pack/deep/__init__.py", "from ..sibling import X\nW = 1\n", True),
        ("uses_space:x", "space/more.py", "Y = 3\n", True),
        ("lazy:run", "named.py", "Z = 2\n", True),
        ("entry:run", "unrelated.py", "Z = 2\n", False),
        ("entry:run", "pack/sibling.py", '"""What X is."""\n\n# A reason.\nX   =   1  # one\n', False),
        ("entry:run", "entry.py", FILES["entry.py"].replace("def run():", 'def run():\n    """Run."""'), False),
        ("entry:run", "pack/sibling.py", "X = 1\nclass A:\n    pass\n", True),
        ("entry:run", "pack/sibling.py", "X = 1\n'not a docstring'\n", True),
    ],
)
def test_what_changes_the_digest(code: Path, entry: str, file: str, text: str, changed: bool) -> None:
    before = code_digest([entry], [code])
    (code / file).write_text(text)
    assert (code_digest([entry], [code]) != before) is changed


def test_docstrings_of_classes_and_methods_do_not_count(code: Path) -> None:
    (code / "pack/sibling.py").write_text(
        "X = 1\nclass A:\n    def f(self):\n        pass\n    async def g(self):\n        pass\n"
    )
    before = code_digest(["entry:run"], [code])
    (code / "pack/sibling.py").write_text(
        "X = 1\nclass A:\n    'A.'\n    def f(self):\n        'F.'\n    async def g(self):\n        'G.'\n        pass\n"
    )
    assert code_digest(["entry:run"], [code]) == before


def test_the_place_and_the_order_of_entries_do_not_count(code: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    import shutil

    moved = tmp_path_factory.mktemp("other") / "code"
    shutil.copytree(code, moved)
    both = ["entry:run", "lazy:run"]
    assert code_digest(both, [code]) == code_digest(both[::-1] + both, [moved])
    assert code_digest(both, [code]) != code_digest(both[:1], [code])


def test_folders_are_searched_in_order(code: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    first = tmp_path_factory.mktemp("first")
    before = code_digest(["lazy:run"], [first, code])
    (first / "named.py").write_text("Z = 99\n")
    assert code_digest(["lazy:run"], [first, code]) != before
    assert code_digest(["lazy:run"], [code, first]) == before


def test_an_import_in_a_try_is_followed_where_it_exists(code: Path) -> None:
    (code / "entry.py").write_text("try:\n    import optional_part\nexcept ImportError:\n    optional_part = None\n")
    before = code_digest(["entry:x"], [code])
    (code / "optional_part.py").write_text("X = 1\n")
    assert code_digest(["entry:x"], [code]) != before


def test_cycles_end(code: Path) -> None:
    (code / "one.py").write_text("import two\n")
    (code / "two.py").write_text("import one\n")
    assert code_digest(["one:x"], [code]) != code_digest(["two:x", "named:x"], [code])


def test_another_version_of_a_package_counts(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = code_digest(["entry:run"], [code])
    version = "importlib.metadata.version"
    monkeypatch.setattr(version, lambda name: "0.0.1" if name == "numpy" else "1")
    assert code_digest(["entry:run"], [code]) != before
    monkeypatch.setattr(version, lambda name: "0.0.2" if name == "scipy" else "1")
    same = code_digest(["entry:run"], [code])
    monkeypatch.setattr(version, lambda name: "0.0.3" if name == "scipy" else "1")
    assert code_digest(["entry:run"], [code]) == same


def test_a_module_that_is_on_the_path_but_not_installed_counts_by_its_source(
    code: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    aside = tmp_path_factory.mktemp("aside")
    (aside / "aside_module.py").write_text("A = 1\n")
    (code / "entry.py").write_text("import aside_module\n")
    monkeypatch.syspath_prepend(str(aside))
    before = code_digest(["entry:run"], [code])
    (aside / "aside_module.py").write_text("A = 2\n")
    assert code_digest(["entry:run"], [code]) != before


def test_an_installed_callable_needs_no_code_folder() -> None:
    assert code_digest(["numpy.linalg:norm"], []) != code_digest(["scipy.linalg:norm"], [])


@pytest.mark.parametrize(
    ("entries", "change", "words"),
    [
        (["missing_thing:f"], {}, r"entry point 'missing_thing:f' needs module 'missing_thing', which is neither"),
        (["pack.none:f"], {}, r"needs module 'pack.none', which none of the `code` folders"),
        (["entry:run"], {"pack/sibling.py": "import gone_thing\n"}, r"sibling.py, line 1, needs module 'gone_thing'"),
        (["entry:run"], {"pack/sibling.py": "X = 1\nfrom .gone import y\n"}, r"line 2, needs module 'pack.gone'"),
        (["entry:run"], {"entry.py": "from .. import x\n"}, r"line 1, imports relative to a package above its top"),
        (["entry:run"], {"entry.py": "def f(:\n"}, r"entry.py is not valid Python .*line 1"),
        (["entry.:run"], {}, "not of the form package.module:callable"),
        ([":run"], {}, "not of the form package.module:callable"),
    ],
)
def test_refusals(code: Path, entries: list[str], change: dict[str, str], words: str) -> None:
    for file, text in change.items():
        (code / file).write_text(text)
    with pytest.raises(InputError, match=words):
        code_digest(entries, [code])


def test_nothing_is_imported_or_run(code: Path) -> None:
    (code / "entry.py").write_text("import torch, ray, pyarrow\nraise SystemExit('was run')\n")
    script = (
        "import sys\nfrom cluster.code_digest import code_digest\ncode_digest(['entry:run'], [sys.argv[1]])\n"
        "print(sorted({'torch', 'ray', 'pyarrow', 'numpy', 'pydantic', 'entry'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(code)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_compiled_modules_count_by_their_bytes(code: Path) -> None:
    (code / "fast.cpython-311-x86_64-linux-gnu.so").write_bytes(b"one")
    (code / "entry.py").write_text("import fast\n")
    before = code_digest(["entry:run"], [code])
    (code / "fast.cpython-311-x86_64-linux-gnu.so").write_bytes(b"two")
    assert code_digest(["entry:run"], [code]) != before


def test_no_entries_is_one_value() -> None:
    assert code_digest([], []) == code_digest([], ["/nowhere"])
