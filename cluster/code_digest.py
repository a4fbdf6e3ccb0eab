"""What user code is, as a digest: the static import closure of its entry points, without docstrings or comments."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cluster.code import OWN_PACKAGES
from cluster.errors import InputError
from cluster.fingerprint import canonical_json, sha256


@dataclass
class _Closure:
    folders: list[Path]
    modules: dict[str, str] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)
    # Folder of a module that is on the import path without ever having been installed, by its top name.
    uninstalled: dict[str, Path] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    _distributions: Mapping[str, list[str]] | None = None

    def locate(self, module: str) -> tuple[Path | None, bool]:
        """Return (the module's file, whether it is a package); (None, True) for a namespace package, and
        (None, False) where no code folder holds it."""
        relative = Path(*module.split("."))
        namespace = False
        extra = self.uninstalled.get(module.partition(".")[0])
        for folder in [*self.folders, *([extra] if extra else [])]:
            base = folder / relative
            if (base / "__init__.py").is_file():
                return base / "__init__.py", True
            if base.with_name(base.name + ".py").is_file():
                return base.with_name(base.name + ".py"), False
            compiled = sorted(base.parent.glob(base.name + ".*.so")) if base.parent.is_dir() else []
            if compiled:
                return compiled[0], False
            namespace = namespace or base.is_dir()
        return None, namespace

    def add(self, module: str, asked_by: str, needed: bool) -> None:
        """Take in `module`, its parent packages, and what they import."""
        parts = module.split(".")
        top = parts[0]
        if self.locate(top) == (None, False):
            self.add_package(top, module, asked_by, needed)
            return
        for depth in range(1, len(parts) + 1):
            name = ".".join(parts[:depth])
            if name in self.modules:
                continue
            file, is_package = self.locate(name)
            if file is None and not is_package:
                if needed:
                    raise InputError(
                        f"{asked_by} needs module {name!r}, which none of the `code` folders "
                        f"({', '.join(map(str, self.folders))}) holds; correct the name or the folder"
                    )
                self.modules[name] = "absent"
                return
            if file is None:
                self.modules[name] = "namespace"
            elif file.suffix == ".so":
                self.files.append(file)
                self.modules[name] = sha256(file.read_bytes())
            else:
                self.read(name, file, is_package)

    def add_package(self, top: str, module: str, asked_by: str, needed: bool) -> None:
        """Note name==version of a module that is not the user's."""
        if top in self.packages or top in sys.stdlib_module_names or top in OWN_PACKAGES:
            return
        names = self.distributions(top)
        if names:
            self.packages[top] = ",".join(f"{name}=={importlib.metadata.version(name)}" for name in names)
            return
        spec = importlib.util.find_spec(top)
        origin = Path(spec.origin) if spec is not None and spec.origin else None
        if spec is not None and origin is not None and origin.suffix == ".py" and "site-packages" not in origin.parts:
            # No version stands for it, so its sources do.
            self.uninstalled[top] = origin.parents[1] if spec.submodule_search_locations else origin.parent
            self.add(module, asked_by, needed)
        elif spec is not None:
            self.packages[top] = "unversioned"
        elif needed:
            raise InputError(
                f"{asked_by} needs module {module!r}, which is neither in the `code` folders "
                f"({', '.join(map(str, self.folders)) or 'none given'}) nor installed; correct the name, list "
                "its folder in `code`, or install it"
            )
        else:
            self.packages[top] = "absent"

    def distributions(self, top: str) -> list[str]:
        """Return the installed distributions that hold the top-level module `top`."""
        try:
            # The one of the same name, nearly always; reading what all of them hold takes 0.2 s.
            named = importlib.metadata.distribution(top)
            places = (named.locate_file(top), named.locate_file(f"{top}.py"))
            if any(Path(str(place)).exists() for place in places):
                return [top]
        except importlib.metadata.PackageNotFoundError:
            pass
        if self._distributions is None:
            self._distributions = importlib.metadata.packages_distributions()
        return sorted(set(self._distributions.get(top, [])))

    def read(self, name: str, file: Path, is_package: bool) -> None:
        """Digest one source file and follow its imports."""
        self.files.append(file)
        try:
            tree = ast.parse(file.read_bytes(), filename=str(file))
        except (SyntaxError, ValueError) as error:
            raise InputError(f"{file} is not valid Python ({error}); mend it") from error
        found = list(_imports(tree))
        self.modules[name] = sha256(ast.dump(_without_docstrings(tree), annotate_fields=False).encode())
        package = name if is_package else name.rpartition(".")[0]
        for node, needed in found:
            where = f"{file}, line {node.lineno},"
            if isinstance(node, ast.Import):
                for alias in node.names:
                    self.add(alias.name, where, needed)
            elif isinstance(node, ast.ImportFrom):
                self.follow_from(node, package, where, needed)
            else:
                self.add(_constant(node), where, False)

    def follow_from(self, node: ast.ImportFrom, package: str, where: str, needed: bool) -> None:
        """Follow `from X import a, b`: X, and each of a and b that is a module of the user's."""
        base = node.module or ""
        if node.level:
            parts = package.split(".") if package else []
            if node.level > len(parts):
                raise InputError(f"{where} imports relative to a package above its top; mend the import")
            base = ".".join(parts[: len(parts) - node.level + 1] + ([node.module] if node.module else []))
        self.add(base, where, needed)
        for alias in node.names:
            inner = f"{base}.{alias.name}"
            if self.modules.get(base, "absent") != "absent" and self.locate(inner) != (None, False):
                self.add(inner, where, needed)


def _constant(node: ast.AST) -> str:
    assert isinstance(node, ast.Call) and isinstance(node.args[0], ast.Constant)
    return str(node.args[0].value)


def _is_named_import(node: ast.AST) -> bool:
    """Return whether `node` is import_module("literal") or __import__("literal")."""
    if not isinstance(node, ast.Call) or not node.args or not isinstance(node.args[0], ast.Constant):
        return False
    called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    text = node.args[0].value
    return called in ("import_module", "__import__") and isinstance(text, str) and bool(text) and text[0] != "."


def _type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def _imports(node: ast.AST, needed: bool = True) -> Iterator[tuple[ast.Import | ast.ImportFrom | ast.Call, bool]]:
    """Yield every import below `node`, and whether the code cannot do without it (not in try or TYPE_CHECKING)."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, needed
        elif isinstance(child, ast.Call) and _is_named_import(child):
            yield child, False
        optional = isinstance(child, ast.Try) or (isinstance(child, ast.If) and _type_checking(child.test))
        yield from _imports(child, needed and not optional)


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:]
            if not node.body and not isinstance(node, ast.Module):
                node.body = [ast.Pass()]
    return tree


def code_digest(entry_points: Iterable[str], code_dirs: Sequence[Path | str]) -> str:
    """Return the digest of all user code that `entry_points` ("package.module:callable") can import.

    Covers the syntax trees, docstrings left out, of every module below `code_dirs` that is imported, directly or not,
    also inside functions, and name==version of every other package. Nothing is imported or run. Not seen: import names
    computed at run time and data files; `code_version` in the configuration stands for those. Raises InputError for a
    module that does not exist or does not parse.
    """
    closure = _closure(entry_points, code_dirs)
    return sha256(canonical_json({"modules": closure.modules, "packages": closure.packages}, "code"))


def code_files(entry_points: Iterable[str], code_dirs: Sequence[Path | str]) -> list[Path]:
    """Return the files whose content `code_digest` is of."""
    return _closure(entry_points, code_dirs).files


def _closure(entry_points: Iterable[str], code_dirs: Sequence[Path | str]) -> _Closure:
    closure = _Closure([Path(folder).absolute() for folder in code_dirs])
    for entry in sorted(set(entry_points)):
        module, _, _ = entry.partition(":")
        if not all(part.isidentifier() for part in module.split(".")):
            raise InputError(f"{entry!r} is not of the form package.module:callable")
        closure.add(module, f"entry point {entry!r}", True)
    return closure
