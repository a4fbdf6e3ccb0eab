"""The object store: every byte of state is read and written here, create-only unless a name says otherwise."""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import itertools
import logging
import math
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from cluster import retrying
from cluster.errors import InputError, StoreError, StoreRefusedError, outage_of
from cluster.file_errors import in_folders, naming
from cluster.guarantees import LARGE, SMALL, Guarantees, probe
from cluster.s3 import S3Objects, endpoint, trust_endpoint
from cluster.scratch import owned_file, owned_folder

LEFTOVER_SECONDS = 86_400
FOLDER = "a folder"
_log = logging.getLogger("secateur.store")
# What this process has found of each store, and those whose weakness it has told of.
_found: dict[str, Guarantees] = {}
_warned: set[str] = set()
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._=+-]*(/[A-Za-z0-9_][A-Za-z0-9._=+-]*)*\Z")


def check_name(name: str) -> str:
    """Return `name`, or raise StoreError when it could leave the store or hide in it."""
    if not _NAME.match(name):
        raise StoreError(f"object name {name!r} is refused: names are relative paths of letters, digits and ._=+-")
    return name


class Objects(Protocol):
    """Say what a kind of storage must do; names are relative to its root."""

    def create(self, name: str, data: bytes) -> bool: ...
    def replace(self, name: str, data: bytes) -> None: ...
    def read(self, name: str) -> bytes: ...
    def exists(self, name: str) -> bool: ...
    def list(self, prefix: str) -> list[str]: ...
    def remove(self, name: str) -> None: ...
    def open(self, name: str) -> BinaryIO: ...


class FileObjects:
    """Keep objects as files: published by link, so that a name appears once, whole, or not at all.

    The root is made by the first object, and not again: once it was `begun`, a root that is gone is StoreRefusedError.
    """

    def __init__(self, root: Path, begun: bool = False) -> None:
        self.root = root
        # Probes do not begin it: they take the root away again while it is empty.
        self.begun = begun

    def _scratch(self, data: bytes) -> Path:
        path = self.root / "tmp" / uuid.uuid4().hex
        # Another process may take an empty tmp folder away (`tidy`) between the two steps.
        for last in (False, False, True):
            try:
                self._make_folder(path.parent)
                file = path.open("xb")
                break
            except FileNotFoundError:
                if last:
                    raise
        try:
            with file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return path

    def _make_folder(self, folder: Path) -> None:
        """Make a folder of the store so that it outlives a power cut: each new one is written to the one above it."""
        missing = list(itertools.takewhile(lambda place: not place.is_dir(), (folder, *folder.parents)))
        if self.begun and self.root in missing:
            raise StoreRefusedError(
                f"the store {self.root} is gone: it was there when this run began, and is not made anew; put it back"
            )
        # One by one, the highest first: Python's own way to make them all calls itself for each.
        for place in reversed(missing):
            with in_folders(place / "object"):
                place.mkdir(exist_ok=True)
            self._sync_folder(place.parent)

    @staticmethod
    def _sync_folder(folder: Path) -> None:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def create(self, name: str, data: bytes) -> bool:
        final = self.root / name
        created = False
        if not final.exists():
            with naming(self.root):
                created = self._create(final, data)
        self._begin(name)
        return created

    def _begin(self, name: str) -> None:
        self.begun = self.begun or not name.startswith("tmp/")

    def _create(self, final: Path, data: bytes) -> bool:
        scratch = self._scratch(data)
        try:
            self._make_folder(final.parent)
            os.link(scratch, final)
        except FileExistsError:
            if obstacle := self.obstacle(str(final)):
                raise StoreError(f"{final} is {obstacle}, and an object of the store belongs there: remove it") from None
            return False
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            raise StoreError(
                f"{final} cannot be published ({error}): its file system has no hard links, and nothing else creates a "
                "name once; keep the store on another file system or on S3"
            ) from error
        finally:
            scratch.unlink(missing_ok=True)
        self._sync_folder(final.parent)
        return True

    def replace(self, name: str, data: bytes) -> None:
        with naming(self.root):
            self._replace(self.root / name, data)
        self._begin(name)

    def _replace(self, final: Path, data: bytes) -> None:
        scratch = self._scratch(data)
        try:
            self._make_folder(final.parent)
            scratch.replace(final)
        finally:
            scratch.unlink(missing_ok=True)
        self._sync_folder(final.parent)

    def read(self, name: str) -> bytes:
        with in_folders(self.root / name):
            return (self.root / name).read_bytes()

    def exists(self, name: str) -> bool:
        return (self.root / name).is_file()

    def list(self, prefix: str) -> list[str]:
        folder = self.root / prefix
        if not folder.is_dir():
            return []
        return sorted(str(path.relative_to(self.root)) for path in folder.rglob("*") if path.is_file())

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            (self.root / name).unlink()

    def open(self, name: str) -> BinaryIO:
        with in_folders(self.root / name):
            return (self.root / name).open("rb")

    def obstacle(self, name: str) -> str:
        path = self.root / name
        if path.is_file() or not os.path.lexists(path):
            return ""
        return FOLDER if path.is_dir() else "a link that leads nowhere" if path.is_symlink() else "no file"

    def tidy(self) -> None:
        """Remove scratch files that killed writers left a day ago or longer; then empty tmp and root folders."""
        for path in (self.root / "tmp").glob("*"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > LEFTOVER_SECONDS:
                    path.unlink()
        with contextlib.suppress(OSError):
            (self.root / "tmp").rmdir()
            self.root.rmdir()


class Store:
    """Hold the root URI of all state, and pickle as that: credentials come from each machine's environment.

    An operation on S3 is tried for the whole budget of `cluster.retrying`, or for `patience_s` where that is less.
    """

    def __init__(self, uri: str, patience_s: float = math.inf) -> None:
        self.objects: Objects
        if uri.startswith("s3://"):
            self.uri = uri.rstrip("/")
            if not re.match(r"s3://[A-Za-z0-9][A-Za-z0-9.-]{2,}(/|\Z)", self.uri):
                raise InputError(f"store {uri!r} names no bucket; write s3://BUCKET/PREFIX")
            self.objects = S3Objects(self.uri, patience_s=patience_s)
        elif re.match(r"[A-Za-z0-9+]+:/", uri) and not uri.startswith("file://"):
            raise InputError(f"store {uri!r}: its scheme is not known; use a folder, file:// or s3://BUCKET/PREFIX")
        else:
            path = Path(uri.removeprefix("file://")).absolute()
            if not uri.removeprefix("file://"):
                raise InputError("the store has no name; give a folder or s3://BUCKET/PREFIX as --store or SECATEUR_STORE")
            if any(place.exists() and not place.is_dir() for place in (path, *path.parents)):
                raise InputError(
                    f"store {path} cannot be written: it lies at or below a file; name a folder with --store or SECATEUR_STORE"
                )
            self.uri = str(path)
            self.objects = FileObjects(path)

    def __reduce__(self) -> tuple[Callable[[str, bool], Store], tuple[str, bool]]:
        return (_arrived, (self.uri, isinstance(self.objects, FileObjects) and self.objects.begun))

    def after(self, error: BaseException | None) -> Store:
        """Return the store for what is left to do after `error`: after an outage that lasted, it is tried for 5 s only."""
        if outage_of(error) is None or not isinstance(self.objects, S3Objects):
            return self
        return Store(self.uri, retrying.LAST_WORDS_S)

    def url(self, name: str) -> str:
        """Return the full address of `name`, for people."""
        return f"{self.uri}/{check_name(name)}"

    def create(self, name: str, data: bytes) -> bool:
        """Publish `data` under `name` in one atomic step; return False, changing nothing, where the name is taken."""
        return self.objects.create(check_name(name), data)

    def replace(self, name: str, data: bytes) -> None:
        """Put `data` under `name` atomically, over what is there. For views and heartbeats, never for stage results."""
        self.objects.replace(check_name(name), data)

    def read(self, name: str) -> bytes:
        """Return the whole object. Raises FileNotFoundError."""
        return self.objects.read(check_name(name))

    def exists(self, name: str) -> bool:
        """Return whether the object is there now."""
        return self.objects.exists(check_name(name))

    def others(self, prefix: str) -> list[str]:
        """Return the sorted names under the folder `prefix` of what is no object: folders, links that lead nowhere."""
        if not isinstance(self.objects, FileObjects):
            return []
        root = self.objects.root
        return sorted(str(path.relative_to(root)) for path in (root / check_name(prefix)).rglob("*") if not path.is_file())

    def list(self, prefix: str) -> list[str]:
        """Return the sorted names under the folder `prefix`."""
        return self.objects.list(check_name(prefix))

    def obstacle(self, name: str) -> str:
        """Return what lies under `name` so that no object can be there: FOLDER, "a link that leads nowhere"; else ""."""
        return self.objects.obstacle(check_name(name)) if isinstance(self.objects, FileObjects) else ""

    def remove(self, name: str) -> None:
        """Remove an object of work in progress; nothing happens where it is gone already."""
        self.objects.remove(check_name(name))

    def open(self, name: str) -> BinaryIO:
        """Open an object for seekable reading."""
        return self.objects.open(check_name(name))

    def check_writable(self, thorough: bool = False) -> Guarantees:
        """Return what this store guarantees, warning once where that is less than create-only writes. Leaves nothing behind.

        Raises InputError when nothing can be written here. `thorough` sends a multipart upload of more than one part.
        """
        name = f"tmp/probe-{uuid.uuid4().hex}"
        try:
            found = probe(self.objects, name, LARGE if thorough else SMALL)
            if isinstance(self.objects, FileObjects):
                self.objects.tidy()
        except (OSError, StoreError) as error:
            raise InputError(
                f"store {self.uri} cannot be written ({error}); name a writable place with --store or SECATEUR_STORE"
            ) from error
        if found.warning and self.uri not in _warned:
            _warned.add(self.uri)
            _log.warning("secateur: warning: store %s: %s", self.uri, found.warning)
        _found[self.uri] = found
        return found

    def guarantees(self) -> Guarantees:
        """Return what `check_writable` found in this process; it is called where it was not yet."""
        return _found.get(self.uri) or self.check_writable()


def _arrived(uri: str, begun: bool) -> Store:
    """Return a store that came from another process, whose endpoint answered there, with objects in it if it was `begun`."""
    store = Store(uri)
    if isinstance(store.objects, FileObjects):
        store.objects.begun = begun
    if isinstance(store.objects, S3Objects):
        trust_endpoint()
    return store


@functools.cache
def _bucket(name: str, endpoint: str | None, process: int) -> S3Objects:
    # A client takes 0.3 s to make: readers of user data share one. After a fork its connections are not the child's.
    return S3Objects(f"s3://{name}", needs_bucket=False)


def _bucket_of(uri: str) -> tuple[S3Objects, str]:
    """Return the bucket of an s3:// URI and the key in it."""
    name, _, key = uri.removeprefix("s3://").partition("/")
    return _bucket(name, endpoint(), os.getpid()), key


def open_uri(uri: str) -> BinaryIO:
    """Open user data for seekable reading: a local path, file:// or s3://. Raises FileNotFoundError."""
    if uri.startswith("s3://"):
        bucket, key = _bucket_of(uri)
        return bucket.open(key)
    return Path(uri.removeprefix("file://")).open("rb")


def read_uri(uri: str) -> bytes:
    """Return all bytes of a local path, file:// or s3:// object."""
    with open_uri(uri) as file:
        return file.read()


def filesystem(uri: str) -> tuple[Any, str]:
    """Return the fsspec file system of `uri` and the path in it, without a listing cache."""
    if uri.startswith("s3://"):
        return _bucket_of(uri)[0].fs, uri.removeprefix("s3://")
    from fsspec.implementations.local import LocalFileSystem

    return LocalFileSystem(), str(Path(uri.removeprefix("file://")).absolute())


def replace_uri(uri: str, data: bytes) -> None:
    """Write `data` to a user's URI atomically, over what is there; on any error the old object stays untouched."""
    if uri.startswith("s3://"):
        S3Objects(uri.rpartition("/")[0]).replace(uri.rpartition("/")[2], data)
        return
    with replacing_uri(uri) as scratch:
        scratch.write_bytes(data)


@contextlib.contextmanager
def replacing_uri(uri: str) -> Iterator[Path]:
    """Yield the path of a scratch file to write; on a clean exit it takes the place of the user's `uri` atomically.

    On any error the old object stays untouched; what a killed process left for the same URI is removed. For what is too large
    to build in memory.
    """
    if uri.startswith("s3://"):
        with owned_folder("out") as folder:
            path = folder / "object"
            yield path
            S3Objects(uri.rpartition("/")[0]).replace_from(uri.rpartition("/")[2], path)
        return
    final = Path(uri.removeprefix("file://")).absolute()
    final.parent.mkdir(parents=True, exist_ok=True)
    with naming(final.parent), owned_file(final) as scratch:
        yield scratch
        with scratch.open("rb+") as file:
            os.fsync(file.fileno())
        scratch.replace(final)


def as_binary(data: bytes) -> BinaryIO:
    """Return `data` as a seekable binary file."""
    return cast(BinaryIO, io.BytesIO(data))
