"""Where documents are read from and claim checks are written to: a local directory, or any object store fsspec knows.

Web servers are read from by `connectors.http_document`, under rules of its own.

Guarantees: no more than `max_bytes` + 1 bytes are read; only what the operator allowed is read, whatever an event asks
for; a written object appears whole or not at all, and survives a power failure.
"""

import asyncio
import errno
import os
import re
import stat
import tempfile
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NoReturn
from urllib.parse import unquote_to_bytes
from uuid import uuid4

import fsspec  # type: ignore[import-untyped]  # it publishes no types

from connectors.http_document import HttpDocuments
from connectors.web_url import SCHEMES, without_secrets
from schemas.errors import Fatal, Poison, Retryable

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")
_PASSWORD = re.compile(r"(?<=//)[^/@]*@")
_FILE_PROTOCOLS = frozenset({"file", "local"})
_UNSIGNED_PROTOCOLS = _FILE_PROTOCOLS | {"s3", "gs"}  # where a ? belongs to the name
_NO_FILE_ERRNOS = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO})
_REFUSED_ERRNOS = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})

# By name, since fsspec's plug-ins are no dependencies of ours.
_NO_CREDENTIALS = frozenset({"NoCredentialsError", "PartialCredentialsError"})
_NO_ADDRESS = frozenset({"ParamValidationError"})
_WRONG_CREDENTIALS = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch"})  # codes of S3
_STALE_CREDENTIALS = frozenset({"ExpiredToken", "RequestTimeTooSkewed"})


def file_uri(path: Path | str) -> str:
    """The `file:` URI (RFC 8089) of a local path; relative paths start at the current directory."""
    return Path(os.path.abspath(path)).as_uri()  # noqa: PTH100 - Path.absolute() would keep ".."


class ObjectStore:
    """Reads documents by URI, writes claim checks under one base.

    base_url: directory (path or `file:` URI) or URL of another store (`s3://bucket/prefix`); always readable.
    file_roots: directories whose files may be read too, by `file:` URI or absolute path (HEADRACE_FILE_ROOTS).
    protocols: fsspec protocols whose objects may be read too, such as "s3" (HEADRACE_STORE_PROTOCOLS).
    http_hosts: hosts whose http(s) URIs may be read too (HEADRACE_HTTP_HOSTS).

    Calls block in threads, but for those over HTTP; a cancelled one ends on its own in the background.
    """

    def __init__(
        self,
        base_url: str = ".headrace/objects",
        *,
        file_roots: Collection[Path | str] = (),
        protocols: Collection[str] = (),
        http_hosts: Collection[str] = (),
    ) -> None:
        self._http = HttpDocuments(http_hosts)
        self._protocols = frozenset(protocols) - _FILE_PROTOCOLS
        self._base_url = base_url.rstrip("/")
        self._base_directory: Path | None = None
        base_protocol = _protocol(base_url)
        if base_protocol in _FILE_PROTOCOLS:
            self._base_directory = Path(os.path.realpath(_local_path(base_url, base_url)))
        roots = (*file_roots, *((self._base_directory,) if self._base_directory else ()))
        self._roots = tuple(Path(os.path.realpath(root)) for root in roots)
        for protocol in {base_protocol, *self._protocols} - _FILE_PROTOCOLS:
            _check_protocol(protocol)

    async def read(self, uri: str, *, max_bytes: int) -> bytes:
        """The object's bytes.

        Raises:
            Poison: missing, too large, not a regular file, outside of what may be read, or permission denied.
            Retryable: the store is out of reach, or the disk failed.
            Fatal: it does not know us.
        """
        if _protocol(uri) in SCHEMES:
            return await self._http.read(uri, max_bytes=max_bytes)
        if _protocol(uri) in _FILE_PROTOCOLS:
            return await asyncio.to_thread(self._read_file, uri, max_bytes)
        return await asyncio.to_thread(self._read_remote, uri, max_bytes)

    async def write(self, key: str, data: bytes) -> str:
        """Write an object, or replace the one of that key, and return its URI. Writing the same again is a no-op.

        `key` is made of letters, digits and `._-`, in parts divided by `/`; no part begins with a dot.

        Raises:
            Retryable: the store is out of reach or full.
            Fatal: it refuses us, or is not there.
        """
        if not _KEY.fullmatch(key):
            raise ValueError(f"object key {key!r}: letters, digits and ._- in parts divided by /")
        if self._base_directory is not None:
            return await asyncio.to_thread(_write_file, self._base_directory / key, data)
        return await asyncio.to_thread(_write_remote, f"{self._base_url}/{key}", data)

    @asynccontextmanager
    async def writing(self) -> AsyncIterator["ObjectWriter"]:
        """Write an object piece by piece; it is there once `finish` has named it, and leaves nothing behind otherwise.

        A remote store gets it from a local temporary file, so that what is given up half-way never is in the store.

        Raises:
            Retryable: the disk is full, or the store is out of reach.
            Fatal: it refuses us, or is not there.
        """
        writer = await asyncio.to_thread(ObjectWriter, self._base_url, self._base_directory)
        try:
            yield writer
        finally:
            writer.discard()

    def key_of(self, uri: str) -> str | None:
        """The key of the object that `uri` names, if it lies in this store, as claim checks and uploads do."""
        try:
            if _protocol(uri) in _FILE_PROTOCOLS:
                if self._base_directory is None:
                    return None
                path = _resolve(uri, shown_uri(uri))
                if not path.is_relative_to(self._base_directory):
                    return None
                return path.relative_to(self._base_directory).as_posix()
        except Poison:  # which whoever reads it will say
            return None
        base, place = (each.partition("://")[2] for each in (self._base_url, uri))  # S3: and s3a: lead there as well
        return place.removeprefix(f"{base}/") if self._base_directory is None and place.startswith(f"{base}/") else None

    def _read_file(self, uri: str, max_bytes: int) -> bytes:
        shown = shown_uri(uri)
        path = _resolve(uri, shown)
        if not any(path.is_relative_to(root) for root in self._roots):
            raise Poison(f"{shown} lies outside of the directories that may be read; HEADRACE_FILE_ROOTS lists them")
        try:
            status = path.stat(follow_symlinks=False)
            if not stat.S_ISREG(status.st_mode):
                raise Poison(f"{shown} is not a regular file")
            _check_size(status.st_size, max_bytes, shown)
            # Not to block should it have become a FIFO by now.
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as file:
                data = file.read(status.st_size + 1)
        except OSError as error:
            _raise_unreadable(error, shown)
        if len(data) != status.st_size:
            raise Retryable(f"{shown} changed its size from {status.st_size} bytes while it was read: still written?")
        return data

    def _read_remote(self, uri: str, max_bytes: int) -> bytes:
        shown = shown_uri(uri)
        protocol = self._allowed_protocol(uri, shown)
        try:
            # By protocol, not by URL: fsspec's chained URLs ("zip://x::file:///etc") would get around the checks.
            filesystem = fsspec.filesystem(protocol)
            try:
                size = _remote_size(filesystem.info(uri), shown)
            except PermissionError as error:
                if _s3_code(error) == "403":  # of a HEAD request, whose answer cannot say why: ask for a byte
                    filesystem.cat_file(uri, start=0, end=1)
                raise
            _check_size(size, max_bytes, shown)
            # A range of an empty object is an error in S3.
            data: bytes = b"" if size == 0 else filesystem.cat_file(uri, start=0, end=max_bytes + 1)
        except Poison:
            raise
        except OSError as error:
            _raise_unknown(error)
            _raise_unreadable(error, shown)
        except Exception as error:
            _raise_unknown(error)
            if type(error).__name__ in _NO_ADDRESS:
                raise Poison(f"{shown} is no address of an object") from error
            # Each fsspec plug-in has exceptions of its own; what they have in common is a store that did not answer.
            raise Retryable(f"{shown} cannot be read now: {type(error).__name__}: {error}") from error
        _check_size(len(data), max_bytes, shown)
        return data

    def _allowed_protocol(self, uri: str, shown: str) -> str:
        protocol = _protocol(uri)
        if "::" in uri or ".." in uri.split("/"):
            raise Poison(f"{shown}: chained URLs and '..' are refused")
        if protocol in self._protocols or uri.startswith(f"{self._base_url}/"):
            if "://" not in uri:
                raise Poison(f"{shown} is no address of an object; write {protocol}://bucket/key")
            return protocol
        raise Poison(
            f"{shown}: protocol {protocol} is not among those that may be read; HEADRACE_STORE_PROTOCOLS lists them"
        )


class ObjectWriter:
    """An object that is being written; made by `ObjectStore.writing`."""

    def __init__(self, base_url: str, base_directory: Path | None) -> None:
        self._base_url = base_url
        self._base_directory = base_directory
        self._file: BinaryIO
        try:
            if base_directory is None:
                descriptor, name = tempfile.mkstemp()
                self._path = Path(name)
                self._file = os.fdopen(descriptor, "wb")
            else:  # with the rights that whoever reads the store needs
                base_directory.mkdir(parents=True, exist_ok=True)
                self._path = base_directory / f".{uuid4().hex}.tmp"
                self._file = self._path.open("xb")
        except OSError as error:
            _raise_unwritable(error, shown_uri(base_url))

    async def write(self, data: bytes) -> None:
        """Append."""
        await asyncio.to_thread(self._write, data)

    async def finish(self, key: str) -> str:
        """Make it the object of that key, as `ObjectStore.write` does, and return its URI."""
        if not _KEY.fullmatch(key):
            raise ValueError(f"object key {key!r}: letters, digits and ._- in parts divided by /")
        return await asyncio.to_thread(self._finish, key)

    def discard(self) -> None:
        """Leave nothing behind but what was finished."""
        with suppress(OSError):  # of a full disk, which has been told by now
            self._file.close()
        self._path.unlink(missing_ok=True)

    def _write(self, data: bytes) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            _raise_unwritable(error, shown_uri(self._base_url))

    def _finish(self, key: str) -> str:
        uri = f"{self._base_url}/{key}" if self._base_directory is None else file_uri(self._base_directory / key)
        try:
            self._file.flush()
            if self._base_directory is not None:
                self._keep(self._base_directory, self._base_directory / key)
        except OSError as error:
            _raise_unwritable(error, shown_uri(uri))
        if self._base_directory is None:
            _remotely(uri, lambda filesystem: filesystem.put_file(str(self._path), uri))
        return uri

    def _keep(self, base: Path, path: Path) -> None:
        os.fsync(self._file.fileno())
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path.replace(path)
        for directory in path.parents:  # each may be new
            _sync_directory(directory)
            if directory == base:
                return


def _protocol(uri: str) -> str:
    found = _SCHEME.match(uri)
    return found[1].lower() if found else "file"


def _check_protocol(protocol: str) -> None:
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        raise Fatal(f"object store protocol {protocol}: {error}") from error
    except ValueError as error:
        raise Fatal(f"object store protocol {protocol}: fsspec knows none of that name") from error


def _resolve(uri: str, shown: str) -> Path:
    """The real path, symlinks and ".." resolved, so that what is checked is what is opened."""
    try:
        path = _local_path(uri, shown)
        if not os.path.isabs(path):  # noqa: PTH117 - of the string as it is written
            raise Poison(f"{shown} is neither an absolute path nor a URI; send file:///path")
        return Path(os.path.realpath(path))
    except ValueError as error:
        raise Poison(f"{shown!r} is no path: {error}") from error


def _local_path(uri: str, shown: str) -> str:
    """The path that a `file:` URI or a plain path names. Raises Poison if it names none on this machine."""
    if not _SCHEME.match(uri):
        return uri
    path = uri.partition(":")[2]
    if path.startswith("//"):
        host, _, rest = path[2:].partition("/")
        if host.lower() not in {"", "localhost"}:
            raise Poison(f"{shown} names a file on another machine ({host}); a local one is file:///path")
        path = f"/{rest}"
    if "?" in path or "#" in path:
        raise Poison(f"{shown}: write ? as %3F and # as %23 in a file URI")
    return os.fsdecode(unquote_to_bytes(path))


def shown_uri(uri: str) -> str:
    """The URI for messages: without a password or a signature."""
    if _protocol(uri) in SCHEMES:
        return without_secrets(uri)
    return _PASSWORD.sub("", uri if _protocol(uri) in _UNSIGNED_PROTOCOLS else uri.partition("?")[0])


def _remote_size(status: dict[str, Any], shown: str) -> int:
    """Bytes of an object; 0 or more even where the store does not tell, since the read itself is bounded."""
    if status["type"] != "file":
        raise Poison(f"{shown} is a {status['type']}, not an object")
    size = status.get("size")
    return 1 if size is None else int(size)


def _check_size(size: int, max_bytes: int, shown: str) -> None:
    if size > max_bytes:
        raise Poison(f"document {shown} has {size} bytes; the limit is {max_bytes}")


def _raise_unreadable(error: OSError, shown: str) -> NoReturn:
    if isinstance(error, FileNotFoundError) or error.errno in _NO_FILE_ERRNOS:
        raise Poison(f"{shown} does not exist or is not a file") from error
    if isinstance(error, PermissionError) or error.errno in _REFUSED_ERRNOS:
        raise Poison(f"{shown} may not be read by this process: permission denied") from error
    raise Retryable(f"{shown} cannot be read now: {type(error).__name__}: {error}") from error


def _s3_code(error: BaseException) -> str | None:
    """What S3 calls the error that s3fs has translated into this one."""
    response = getattr(error.__cause__ or error.__context__, "response", None)
    return str(response["Error"].get("Code")) if isinstance(response, dict) and "Error" in response else None


def _raise_unknown(error: Exception) -> None:
    """Raise what concerns our credentials, and so any object."""
    code = _s3_code(error)
    if code in _WRONG_CREDENTIALS or type(error).__name__ in _NO_CREDENTIALS:
        raise Fatal(
            f"the object store does not accept our credentials ({code or type(error).__name__}); for S3, see to "
            "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL, or to the role of this machine"
        ) from error
    if code in _STALE_CREDENTIALS:
        raise Retryable(f"the object store does not accept our credentials now ({code})") from error


def _write_file(path: Path, data: bytes) -> str:
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_directory(path.parent)
    except OSError as error:
        _raise_unwritable(error, file_uri(path))
    return file_uri(path)


def _sync_directory(directory: Path) -> None:
    """Make a rename survive a power failure."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_remote(uri: str, data: bytes) -> str:
    _remotely(uri, lambda filesystem: filesystem.pipe_file(uri, data))
    return uri


def _remotely(uri: str, write: Callable[[Any], object]) -> None:
    """Write with what fsspec has for the protocol of `uri`."""
    try:
        write(fsspec.filesystem(_protocol(uri)))
    except OSError as error:
        _raise_unknown(error)
        if isinstance(error, FileNotFoundError):
            raise Fatal(
                f"{shown_uri(uri)} may not be written: {error}; HEADRACE_OBJECT_STORE names where to write"
            ) from error
        _raise_unwritable(error, shown_uri(uri))
    except Exception as error:
        _raise_unknown(error)
        if type(error).__name__ in _NO_ADDRESS:
            raise Fatal(
                f"{shown_uri(uri)} is no address of an object; HEADRACE_OBJECT_STORE names where to write"
            ) from error
        raise Retryable(f"{shown_uri(uri)} cannot be written now: {type(error).__name__}: {error}") from error


def _raise_unwritable(error: OSError, shown: str) -> NoReturn:
    if isinstance(error, PermissionError) or error.errno in _REFUSED_ERRNOS | {errno.ENOTDIR, errno.EEXIST}:
        raise Fatal(f"{shown} may not be written: {error}; HEADRACE_OBJECT_STORE names where to write") from error
    raise Retryable(f"{shown} cannot be written now: {type(error).__name__}: {error}") from error
