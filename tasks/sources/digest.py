"""Which files a location has and what is in them: sha256 cached on (path, size, mtime), on S3 the ETag and size."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from stat import S_ISREG
from typing import Any

from cluster.errors import InputError
from cluster.fingerprint import canonical_json, sha256
from cluster.storage import filesystem
from tasks.sources.protocol import TEST_LOCATION, TRAIN_LOCATION, FileRef, Source
from tasks.sources.spec import DataSpec

# A file changed this short a time ago may change again within one tick of its clock: such digests are not cached.
YOUNG_NS = 2_000_000_000


def is_remote(uri: str) -> bool:
    """Return whether `uri` lies in S3. Raises InputError for a scheme that is not known."""
    if uri.startswith("s3://"):
        return True
    if "://" in uri and not uri.startswith("file://"):
        raise InputError(f"location {uri!r}: its scheme is not known; give a local path, file:// or s3://BUCKET/PREFIX")
    return False


def local_path(uri: str) -> Path:
    """Return the absolute local path that `uri` means."""
    return Path(uri.removeprefix("file://")).expanduser().absolute()


def join_uri(root: str, relative: str) -> str:
    """Return the address of `relative` below the folder `root`."""
    return f"{root.rstrip('/')}/{relative}" if is_remote(root) else str(local_path(root) / relative)


def cache_folder() -> Path:
    """Return the folder of cached digests: $SECATEUR_CACHE/digests or ~/.cache/secateur/digests."""
    root = os.environ.get("SECATEUR_CACHE")
    return (Path(root) if root else Path("~/.cache/secateur").expanduser()) / "digests"


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cached(path: Path) -> dict[str, list[Any]]:
    try:
        known = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _write_cache(path: Path, known: dict[str, list[Any]]) -> None:
    # A cache that cannot be written costs time, never a result.
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.parent / f".{uuid.uuid4().hex}"
        try:
            scratch.write_text(json.dumps(known))
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)


def digest_files(root: Path, files: Iterable[tuple[str, Path]], role: str) -> list[FileRef]:
    """Return refs of local (relative, path) files with their sha256; digests are cached in one file for each root."""
    cache = cache_folder() / f"{sha256(str(root).encode())[:32]}.json"
    known = _cached(cache)
    fresh: dict[str, list[Any]] = {}
    out = []
    for relative, path in files:
        try:
            stat = path.stat()
            if not S_ISREG(stat.st_mode):
                raise InputError(f"{role}: {path} is a pipe, socket or device; give plain files")
            entry = known.get(str(path))
            if entry is None or entry[:2] != [stat.st_size, stat.st_mtime_ns]:
                entry = [stat.st_size, stat.st_mtime_ns, _file_sha256(path)]
                if time.time_ns() - stat.st_mtime_ns > YOUNG_NS:
                    fresh[str(path)] = entry
        except OSError as error:
            raise InputError(f"{role}: {path} cannot be read ({error}); give a file that may be read") from error
        out.append(FileRef(relative, str(path), entry[2], stat.st_size))
    if fresh:
        _write_cache(cache, {**known, **fresh})
    return out


def _missing(uri: str, role: str) -> InputError:
    return InputError(f"{role}: there is no file or folder {uri}; check data.{role}")


def _walk(root: Path, role: str, hidden: bool) -> list[tuple[str, Path]]:
    out = []
    # Each folder with the real paths of itself and of those above it: one that lies in itself would never end.
    waiting: list[tuple[Path, tuple[Path, ...]]] = [(root, (root.resolve(),))]
    while waiting:
        folder, above = waiting.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                path = folder / entry.name
                if entry.name.startswith(".") and not hidden:
                    continue
                if not entry.is_dir():
                    out.append(path)
                    continue
                real = path.resolve() if entry.is_symlink() else above[-1] / entry.name
                if real in above:
                    raise InputError(f"{role}: {path} is a link to a folder it lies in; take it away")
                waiting.append((path, (*above, real)))
    return sorted((path.relative_to(root).as_posix(), path) for path in out)


def _remote_ref(entry: dict[str, Any], relative: str) -> FileRef:
    tag = str(entry.get("ETag", "")).strip('"')
    size = int(entry["size"])
    return FileRef(relative, f"s3://{entry['name']}", f"etag:{tag}:{size}", size)


def _list_remote(uri: str, role: str, wanted: Callable[[str], bool], hidden: bool) -> list[FileRef]:
    fs, root = filesystem(uri)
    root = root.rstrip("/")
    try:
        found: dict[str, dict[str, Any]] = fs.find(root, detail=True)
    except FileNotFoundError:
        found = {}
    except PermissionError as error:
        raise InputError(f"{role}: {uri} may not be read ({error}); check the environment's credentials") from error
    except Exception as error:
        if type(error).__name__ not in ("NoCredentialsError", "PartialCredentialsError"):
            raise
        raise InputError(f"{role}: no credentials for {uri} ({error}); set them in the environment") from error
    if not found:
        raise _missing(uri, role)
    if set(found) == {root}:
        return [_remote_ref(found[root], root.rpartition("/")[2])]
    out = []
    for path, entry in sorted(found.items()):
        relative = path.removeprefix(root).lstrip("/")
        shown = hidden or not is_hidden(relative)
        if relative and shown and not path.endswith("/") and wanted(relative):
            out.append(_remote_ref(entry, relative))
    return out


def is_hidden(relative: str) -> bool:
    """Return whether a name, or that of a folder it lies in, begins with a dot."""
    return any(word.startswith(".") for word in relative.split("/"))


def list_location(
    uri: str, role: str, wanted: Callable[[str], bool] = lambda relative: True, *, hidden: bool = False
) -> list[FileRef]:
    """Return the digested files of a file or folder, sorted by relative name; a single file is known by its base name.

    In a folder, names that begin with a dot are left out unless `hidden`, and those that `wanted` refuses.
    Raises InputError where nothing is there.
    """
    if is_remote(uri):
        return _list_remote(uri, role, wanted, hidden)
    root = local_path(uri)
    if root.is_file():
        return digest_files(root, [(root.name, root)], role)
    if not root.is_dir():
        raise _missing(str(root), role)
    files = [(relative, path) for relative, path in _walk(root, role, hidden) if wanted(relative)]
    return digest_files(root, files, role)


def list_named(uris: Iterable[str], role: str) -> list[FileRef]:
    """Return the digested files at the given addresses, in their order. Raises InputError where one is not there."""
    out = []
    for uri in uris:
        refs = list_location(uri, role)
        if len(refs) != 1 or refs[0].uri != (uri.rstrip("/") if is_remote(uri) else str(local_path(uri))):
            raise InputError(f"{role}: {uri} is a folder; a file is needed")
        out += refs
    return out


def file_uri(root: str, relative: str) -> str:
    """Return the address of a file that `list_location(root)` knows as `relative`."""
    if is_remote(root):
        # A prefix and an object may have one name; the object is what was listed, if it is there.
        return root.rstrip("/") if root.rpartition("/")[2] == relative and exists(root) else join_uri(root, relative)
    path = local_path(root)
    return str(path) if path.is_file() else str(path / relative)


def exists(uri: str) -> bool:
    """Return whether a file is at `uri`."""
    if is_remote(uri):
        fs, path = filesystem(uri)
        return bool(fs.isfile(path))
    return local_path(uri).is_file()


def sources_digest(sources: dict[str, Source]) -> str:
    """Return the digest of relative names, contents and roles of all files of the sources by location."""
    train = {file.uri for file in sources[TRAIN_LOCATION].files()}
    if TEST_LOCATION in sources:
        shared = sorted(train.intersection(file.uri for file in sources[TEST_LOCATION].files()))
        if shared:
            raise InputError(
                f"{shared[0]} is in both data.train and data.test: a model would be tested on its training rows; "
                "give other test files, or leave test out and set test_fraction"
            )
    body = {
        role: [[file.relative, file.digest, file.size] for file in source.files()] for role, source in sources.items()
    }
    return sha256(canonical_json(body, "data"))


def data_digest(spec: DataSpec) -> str:
    """Return the digest of the data that `spec` names: relative names, contents and roles, never absolute paths.

    Fast when the digests are cached, and free of heavy imports for local data. Raises InputError when data are missing.
    """
    from tasks.sources.registry import open_sources

    return sources_digest(open_sources(spec))
