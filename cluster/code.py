"""The user's own code: checked, put on the import path, and copied for workers on other machines."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from cluster.errors import InputError

OWN_PACKAGES = ("flows", "tasks", "cluster")
PROJECT_ROOT = Path(__file__).resolve().parents[1]

# Ray keeps a shipped folder in the head's memory until the run ends, and its jobs API takes no more than this.
MAX_SHIPPED_BYTES = 100 * 2**20
_NOT_CODE = {"__pycache__", "node_modules", "site-packages"}


def check_own_packages() -> None:
    """Raise InputError unless `flows`, `tasks` and `cluster`, as imported, are those beside this file."""
    import importlib.util

    for name in OWN_PACKAGES:
        spec = importlib.util.find_spec(name)
        places = [Path(place).resolve() for place in (spec.submodule_search_locations or [])] if spec else []
        if PROJECT_ROOT / name not in places:
            got = places[0] if places else (spec.origin if spec else "nothing")
            raise InputError(
                f"package {name!r} is imported from {got}, not from {PROJECT_ROOT / name}: another package of that "
                "name comes first on the import path; run in another folder, or take it off PYTHONPATH"
            )


def check_code_dirs(folders: Iterable[Path | str]) -> list[Path]:
    """Return the absolute `code` folders, after checking that importing from them cannot replace other modules.

    Raises InputError when one is not a folder, or holds at its top a module of Secateur's or the standard library's.
    """
    out: list[Path] = []
    for folder in folders:
        path = Path(folder).expanduser().absolute()
        if not path.is_dir():
            raise InputError(f"code folder {path} is not a folder; `code` lists folders to import your modules from")
        for entry in sorted(path.iterdir()):
            is_package = entry.is_dir() and any(entry.glob("*.py"))
            name = entry.stem if entry.suffix == ".py" else entry.name
            if name in OWN_PACKAGES and (is_package or entry.suffix == ".py"):
                raise InputError(
                    f"code folder {path} holds a module {name!r}, the name of one of Secateur's own packages; "
                    "rename it, or name a folder below it in `code`"
                )
            # A folder without __init__.py never hides a standard module; a file or a regular package does.
            hides = entry.suffix == ".py" or (entry / "__init__.py").is_file()
            if hides and name in sys.stdlib_module_names:
                raise InputError(f"code folder {path} holds a module {name!r}, which hides Python's own; rename it")
        if path not in out:
            out.append(path)
    return out


def add_code_dirs(folders: Iterable[Path | str]) -> None:
    """Put the folders at the head of this process's import path, the first of them first."""
    paths = [str(Path(folder).absolute()) for folder in folders]
    sys.path[:] = paths + [entry for entry in sys.path if entry not in paths]


def _copy_tree(source: Path, target: Path) -> None:
    """Copy a folder without hidden files, caches and virtual environments. Links are followed, each folder once."""
    seen: set[str] = set()

    def leave_out(folder: str, names: list[str]) -> set[str]:
        seen.add(os.path.realpath(folder))
        out: set[str] = set()
        for name in names:
            path = Path(folder, name)
            is_other = name.startswith(".") or name in _NOT_CODE or name.endswith((".pyc", ".egg-info"))
            is_environment = (path / "pyvenv.cfg").is_file()
            is_broken = not (path.is_dir() or path.is_file())
            is_copied = path.is_dir() and os.path.realpath(path) in seen
            if is_other or is_environment or is_broken or is_copied:
                out.add(name)
        return out

    shutil.copytree(source, target, ignore=leave_out)


def stage_code(folders: Sequence[Path], target: Path) -> list[str]:
    """Fill the new folder `target` with what workers on other machines import; return the user's folders in it.

    Holds `cluster`, `tasks` and a filtered copy of each of `folders`, as relative paths user/0, user/1, ... Raises
    InputError above 100 MiB.
    """
    target.mkdir(parents=True)
    for name in ("cluster", "tasks"):
        _copy_tree(PROJECT_ROOT / name, target / name)
    places: list[str] = []
    for number, folder in enumerate(folders):
        place = f"user/{number}"
        (target / "user").mkdir(exist_ok=True)
        _copy_tree(folder, target / place)
        places.append(place)
    sizes = {path: path.stat().st_size for path in target.rglob("*") if path.is_file()}
    total = sum(sizes.values())
    if total > MAX_SHIPPED_BYTES:
        largest = sorted(sizes, key=lambda path: -sizes[path])[:3]
        names = ", ".join(f"{path.relative_to(target)} ({sizes[path] / 2**20:.0f} MiB)" for path in largest)
        raise InputError(
            f"the `code` folders hold {total / 2**20:.0f} MiB, and {MAX_SHIPPED_BYTES // 2**20} MiB can be sent to the "
            f"cluster; largest: {names}. Keep data out of `code`, or name a smaller folder"
        )
    return places
