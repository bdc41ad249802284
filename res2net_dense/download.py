"""Downloads that are what they say: a file is at its path only when it is whole and its SHA-256 is right.

What has come so far is kept in `<path>.part`, so that a broken or killed download goes on where it was. The
part file is locked: of several processes one downloads and the others find the finished file. Nothing but
`http` and `https` is spoken, redirections included; the proxies of the environment are used.
"""

from __future__ import annotations

import errno
import http.client
import io
import logging
import os
import re
import shlex
import shutil
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tqdm import tqdm

from res2net_dense.errors import DownloadError
from res2net_dense.files import sha256_of
from res2net_dense.version import __version__

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

TRIES = 3
"""Requests of one download, whatever the number of mirrors, unless there are more mirrors than that."""

CONNECT_SECONDS = 4.0
"""How long all servers together may take to accept a connection: longer means offline."""

PAUSE_SECONDS = 0.5
"""Before a server that failed is asked again; twice that before the next time."""

_CHUNK = 1 << 18
_logger = logging.getLogger(__name__)


def download(urls: str | Sequence[str], path: str | Path, *, sha256: str, timeout: float = 30.0) -> Path:
    """Download a file to `path` unless it is there already, with a progress bar on a terminal.

    A file that is there is hashed too (about 0.1 s for 100 MB); one with another hash is moved to
    `<path>.damaged` with a warning. A server that answers with an error of its own (5xx), breaks off or
    stalls is asked again for the rest; one that refuses (4xx) or has other content is not.

    Args:
        urls: Where the file is, the official place first, mirrors after it; `http` or `https`.
        path: The file to write; its folder is made.
        sha256: The hash of the content in hex, or at least its first 8 digits where no more is known.
        timeout: Seconds without a single byte after which a connection counts as stalled.

    Returns:
        `path`.

    Raises:
        DownloadError: No server could be reached (said within 5 s), none had the file, the disk is full, or
            an argument is wrong. The message is one line with the way by hand.
    """
    path = Path(path)
    urls = _check_urls([urls] if isinstance(urls, str) else urls)
    sha256 = sha256.lower()
    if not re.fullmatch("[0-9a-f]{8,64}", sha256):
        raise DownloadError(f"cannot verify {path.name}: {sha256!r} is not 8 to 64 hex digits of a SHA-256")
    if _is_whole(path, sha256):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _open_part(path) as (part, file):
            if _is_whole(path, sha256):  # another process was faster
                return path
            if path.exists():
                _set_aside(path)
            _fill(file, part, urls, sha256, timeout, _by_hand(urls[0], path))
            os.fsync(file.fileno())
            if fcntl is None:  # Windows does not rename an open file
                file.close()
            os.replace(part, path)
    except OSError as error:
        raise DownloadError(
            f"cannot write {path}: {error.strerror or error}; choose another folder or mend this one"
        ) from None
    return path


def _fill(
    file: io.FileIO, part: Path, urls: Sequence[str], sha256: str, timeout: float, by_hand: str
) -> None:
    """Download what `file` still lacks, from the first server that has it."""
    if part.stat().st_size and _is_whole(part, sha256):  # killed between the last byte and the new name
        return
    # All at once, so that one silent server does not use up the time of the others.
    deadline = time.monotonic() + CONNECT_SECONDS
    contacts = {url: _Contact(url) for url in urls}
    waiting, reasons = list(contacts), dict[str, str]()
    tries, limit = 0, max(TRIES, len(contacts))
    while waiting and tries < limit:
        url = waiting.pop(0)
        if url in reasons:
            time.sleep(PAUSE_SECONDS * tries)
        elif failure := contacts[url].failure(deadline):
            reasons[url] = failure
            continue
        tries += 1
        try:
            resumed = _receive(url, file, part, timeout)
        except _RefusedError as error:
            reasons[url] = str(error)
            continue
        except (OSError, http.client.HTTPException) as error:
            reasons[url] = _describe(error)
            waiting.append(url)
            continue
        digest = sha256_of(part)
        if digest.startswith(sha256):
            return
        size = part.stat().st_size
        reasons[url] = f"sent {size:,} bytes whose SHA-256 begins with {digest[:8]} instead of {sha256[:8]}"
        file.truncate(0)
        if resumed:  # the part may have been of another file: the same server may be right
            waiting.insert(0, url)
    said = "; ".join(f"{urllib.parse.urlsplit(url).hostname}: {reason}" for url, reason in reasons.items())
    raise DownloadError(f"cannot download {_final_name(part)} ({said}); {by_hand}")


def _receive(url: str, file: io.FileIO, part: Path, timeout: float) -> bool:
    """Append to `file` what it lacks of the content of `url`; return whether it went on with a part.

    Raises:
        _RefusedError: The server does not have it.
        OSError, http.client.HTTPException: The network failed.
        DownloadError: The disk is full.
    """
    there = part.stat().st_size
    headers = {"User-Agent": f"res2net_dense/{__version__}", "Accept-Encoding": "identity"}
    if there:
        headers["Range"] = f"bytes={there}-"
    try:
        answer = _opener().open(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and there:
            file.truncate(0)
            raise ConnectionError(f"has no {there:,} bytes to go on from") from None
        if error.code < 500:
            raise _RefusedError(_describe(error)) from None
        raise
    with answer:
        if answer.headers.get_content_type() == "text/html":
            raise _RefusedError("answered with a web page; does your network want a login?")
        start = 0
        if answer.status == 206:
            said = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
            start = int(said[1]) if said else -1
        if not 0 <= start <= there:
            file.truncate(0)
            raise ConnectionError("sent another part than it was asked for")
        file.truncate(start)
        length = answer.length  # of this answer; None where the server does not say
        _check_room(part, length)
        with tqdm(
            total=None if length is None else start + length, initial=start, unit="B", unit_scale=True,
            desc=_final_name(part), disable=None,
        ) as bar:  # fmt: skip
            received = 0
            # read1: what arrives is written at once, and is not lost when the connection stalls.
            while chunk := answer.read1(_CHUNK):
                _write(file, part, chunk)
                received += len(chunk)
                bar.update(len(chunk))
        if length is not None and received < length:
            raise ConnectionError(f"broke off after {start + received:,} of {start + length:,} bytes")
    return start > 0


class _RefusedError(Exception):
    """The server answered, and asking it again is of no use."""


class _Contact(threading.Thread):
    """Tries to connect to the server of a URL, or to the proxy before it.

    In a thread because looking up a name has no timeout in Python.
    """

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url = url
        self._failure = f"no answer within {CONNECT_SECONDS:g} s"
        self.start()

    def run(self) -> None:
        """Connect once and hang up."""
        try:
            parts = urllib.parse.urlsplit(self._url)
            proxy = urllib.request.getproxies().get(parts.scheme)
            if proxy and not urllib.request.proxy_bypass(parts.hostname or ""):
                parts = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
            address = (parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
            socket.create_connection(address, timeout=CONNECT_SECONDS).close()
            self._failure = ""
        except (OSError, ValueError) as error:  # ValueError: a malformed proxy
            self._failure = _describe(error)

    def failure(self, deadline: float) -> str:
        """Why there is no connection, waiting until `deadline` of `time.monotonic`; empty if there is one."""
        self.join(max(0.0, deadline - time.monotonic()))
        return self._failure


@contextmanager
def _open_part(path: Path) -> Iterator[tuple[Path, io.FileIO]]:
    """Open the part file of `path` for appending, for this process alone; an empty one is removed at the end.

    Where files cannot be locked, every process has a part of its own, which does not outlive it.
    """
    shared = part = path.with_name(f"{path.name}.part")
    while True:
        file = open(part, "ab", buffering=0)  # noqa: SIM115  # closed below
        if part != shared:
            break
        if not _lock(file):
            file.close()
            with suppress(OSError):
                if part.stat().st_size == 0:
                    part.unlink()
            part = path.with_name(f"{path.name}.part{os.getpid()}")
            continue
        # While this process waited, the part may have become the finished file or have been removed.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), part.stat()):
                break
        file.close()
    try:
        yield part, file
    finally:
        if part.exists() and (part != shared or part.stat().st_size == 0):
            part.unlink()
        file.close()


def _final_name(part: Path) -> str:
    return part.name.rpartition(".part")[0]


def _lock(file: io.FileIO) -> bool:
    """Wait until no other process has `file` locked and lock it; whether the file system can."""
    if fcntl is None:
        return False
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _logger.info("waiting for another process that downloads %s", file.name)
            fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:  # some network file systems
        return False
    return True


def _opener() -> urllib.request.OpenerDirector:
    """Speaks http and https, and nothing that a redirection may ask for beyond them."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _check_urls(urls: Sequence[str]) -> list[str]:
    if not urls:
        raise DownloadError("nothing to download from: no URL is given")
    for url in urls:
        try:
            parts = urllib.parse.urlsplit(url)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            good = False
        if not good or not url.isprintable() or " " in url:
            raise DownloadError(f"cannot download {url!r}: only http:// and https:// addresses are")
    return list(dict.fromkeys(urls))


def _check_room(part: Path, length: int | None) -> None:
    free = shutil.disk_usage(part.parent).free
    if length is not None and length > free:
        raise _disk_full(part, f"{length:,} more bytes are needed", free)


def _write(file: io.FileIO, part: Path, chunk: bytes) -> None:
    rest = memoryview(chunk)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DownloadError(f"cannot write {part}: {error.strerror}") from None
        there = part.stat().st_size
        file.truncate(0)  # a full disk troubles everybody
        free = shutil.disk_usage(part.parent).free
        raise _disk_full(part, f"more than {there:,} bytes are needed", free) from None


def _disk_full(part: Path, needed: str, free: int) -> DownloadError:
    return DownloadError(
        f"no room for {_final_name(part)} in {part.parent}: {needed}, {free:,} are free (or a "
        "quota allows less); make room or choose another folder"
    )


def _is_whole(path: Path, sha256: str) -> bool:
    """Whether `path` is there with the right hash."""
    try:
        return sha256_of(path).startswith(sha256)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise DownloadError(f"cannot read {path}: {error.strerror}; remove it to download it anew") from None


def _set_aside(path: Path) -> None:
    damaged = path.with_name(f"{path.name}.damaged")
    warnings.warn(f"{path} is not what was published (SHA-256 differs): moved to {damaged}", stacklevel=3)
    os.replace(path, damaged)


def _by_hand(url: str, path: Path) -> str:
    command = shlex.join(["curl", "-fL", "-o", str(path), url])
    return f"by hand: `{command}`, or run that on a machine with a connection and copy the file to this path"


def _describe(error: BaseException) -> str:
    """An error of the network in one line."""
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, BaseException):
        error = error.reason
    if isinstance(error, TimeoutError):
        return "timed out"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())
