"""Downloads that are what they say: a file is at its path only when it is whole and its SHA-256 is right.

`pooch` transfers the bytes with `requests`, which uses the proxies of the environment and follows
redirections to http and https alone. Added here: hashes of which only the first digits are known, mirrors, an
answer within 5 s where there is no network, and one download for several processes.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import shutil
import socket
import threading
import time
import urllib.parse
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock
from tqdm import tqdm

from res2net_dense.errors import DownloadError, one_line
from res2net_dense.files import NO_LOCKS, sha256_of
from res2net_dense.version import __version__

if TYPE_CHECKING:
    import requests

TRIES = 3
"""Attempts of one download, whatever the number of mirrors, unless there are more mirrors than that."""
CONNECT_SECONDS = 4.0
"""How long all servers together may take to accept a connection: longer means offline."""
PAUSE_SECONDS = 0.5
"""Before the second attempt at a server; twice that before the third."""

_log = logging.getLogger(__name__)


def download(urls: str | Sequence[str], path: str | Path, *, sha256: str, timeout: float = 30.0) -> Path:
    """Download a file to `path` unless it is there already, with a progress bar on a terminal.

    A file that is there is hashed too (about 0.1 s for 100 MB); one with another hash is moved to
    `<path>.damaged` with a warning. Of several processes one downloads and the others find the finished file.

    Args:
        urls: Where the file is, the official place first, mirrors after it; `http` or `https`.
        path: The file to write; its folder is made.
        sha256: The hash of the content in hex, or at least its first 8 digits where no more is known.
        timeout: Seconds without a single byte after which a connection counts as stalled.

    Raises:
        DownloadError: No server could be reached (reported within 5 s), none had the file, the disk is full,
            or an argument is wrong. The message is one line with the command to do it by hand.
    """
    path, sha256 = Path(path), sha256.lower()
    urls = [urls] if isinstance(urls, str) else list(dict.fromkeys(urls))
    if not urls or not all(re.fullmatch(r"https?://\S+", url) for url in urls):
        raise DownloadError(f"cannot download {path.name} from {urls}: http:// or https:// URLs are needed")
    if not re.fullmatch("[0-9a-f]{8,64}", sha256):
        raise DownloadError(f"cannot verify {path.name}: {sha256!r} is not 8 to 64 hex digits of a SHA-256")
    try:
        if _is_whole(path, sha256):
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path) as temporary:
            if _is_whole(path, sha256):  # another process was faster
                return path
            if path.exists():
                damaged = path.with_name(f"{path.name}.damaged")
                warnings.warn(
                    f"{path} is not what was published (SHA-256 differs): moved to {damaged}", stacklevel=2
                )
                os.replace(path, damaged)
            _download_from(urls, path, temporary, sha256, timeout)
    except OSError as error:
        raise DownloadError(
            f"cannot write {path}: {error.strerror or error}; choose another folder or fix this one"
        ) from None
    return path


def _is_whole(path: Path, sha256: str) -> bool:
    return path.exists() and sha256_of(path).startswith(sha256)


@contextmanager
def _locked(path: Path) -> Iterator[Path]:
    """Wait until no other process downloads `path`; yields the file to write to.

    Where the file system has no locks, every process writes to a file of its own.
    """
    # The lock file stays, so those who share the folder must be able to open it.
    lock = FileLock(path.with_name(f".{path.name}.lock"), mode=0o666, fallback_to_soft=False)
    temporary = ".part"
    try:
        lock.acquire()
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        temporary = f".part-{socket.gethostname()}-{os.getpid()}"
    try:
        yield path.with_name(f".{path.name}{temporary}")
    finally:
        lock.release()


def _download_from(urls: Sequence[str], path: Path, temporary: Path, sha256: str, timeout: float) -> None:
    """Download from the first server that has the file. Only failures that may pass are tried again."""
    import requests  # here and below: `import res2net_dense` does not need them

    failures: dict[str, str] = {}
    contacts = {url: threading.Thread(target=_connect, args=(url, failures), daemon=True) for url in urls}
    for thread in contacts.values():
        # All at once, so that one silent server does not use up the time of the others.
        thread.start()
    deadline = time.monotonic() + CONNECT_SECONDS
    waiting, reasons = list(urls), dict[str, str]()
    for attempt in range(max(TRIES, len(urls))):
        if not waiting:
            break
        url = waiting.pop(0)
        if url in reasons:
            time.sleep(PAUSE_SECONDS * attempt)
        contacts[url].join(max(0.0, deadline - time.monotonic()))
        if failure := failures.get(url, f"no answer within {CONNECT_SECONDS:g} s"):
            reasons[url] = failure
            continue
        try:
            return _transfer(url, path, temporary, sha256, timeout)
        except _RefusedError as error:
            reasons[url] = str(error)
        except (requests.RequestException, ValueError) as error:  # ValueError: a header that is not a number
            answer = getattr(error, "response", None)
            reasons[url] = one_line(error) if answer is None else f"HTTP error {answer.status_code}"
            if answer is None or answer.status_code >= 500:
                waiting.append(url)
    details = "; ".join(f"{url}: {reason}" for url, reason in reasons.items())
    command = shlex.join(["curl", "-fL", "-o", str(path), urls[0]])
    raise DownloadError(
        f"cannot download {path.name} ({details}); by hand: `{command}`, or run that on a machine with a "
        "connection and copy the file to this path"
    )


def _connect(url: str, failures: dict[str, str]) -> None:
    """Write into `failures` why the server of `url`, or the proxy before it, cannot be reached; "" if it can.

    Run in a thread, because looking up a name has no timeout in Python.
    """
    from requests.utils import get_environ_proxies, select_proxy

    try:
        proxy = select_proxy(url, get_environ_proxies(url))
        parts = urllib.parse.urlsplit(url if proxy is None else proxy if "//" in proxy else f"//{proxy}")
        address = (parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
        socket.create_connection(address, timeout=CONNECT_SECONDS).close()
        failures[url] = ""
    except (OSError, ValueError) as error:
        failures[url] = one_line(error)


class _RefusedError(Exception):
    """The server answered, and asking it again is of no use."""


def _transfer(url: str, path: Path, temporary: Path, sha256: str, timeout: float) -> None:
    """Download `url` to `path`, which appears only with the right content; no one else has `temporary`."""
    import pooch

    def check(answer: requests.Response, **_: object) -> None:
        if answer.status_code != 200:  # requests deals with redirections and errors
            return
        if answer.headers.get("Content-Type", "").startswith("text/html"):
            raise _RefusedError("answered with a web page; does your network need a login?")
        needed, free = int(answer.headers.get("Content-Length", 0)), shutil.disk_usage(path.parent).free
        if needed > free:
            raise DownloadError(
                f"no space for {path.name} in {path.parent}: {needed:,} bytes are needed, {free:,} are free; "
                "free some space or choose another folder"
            )

    _log.info("downloading %s to %s", url, path)
    # `total` is replaced by pooch; `disable=None` shows the bar on a terminal only.
    with tqdm(total=1, desc=path.name, unit="B", unit_scale=True, disable=None) as bar:
        transfer = pooch.HTTPDownloader(
            progressbar=bar,
            chunk_size=1 << 18,
            timeout=(CONNECT_SECONDS, timeout),
            headers={"User-Agent": f"res2net_dense/{__version__}", "Accept-Encoding": "identity"},
            hooks={"response": check},
        )
        try:
            transfer(url, str(temporary), None)
            digest = sha256_of(temporary)
            if not digest.startswith(sha256):
                raise _RefusedError(
                    f"sent {temporary.stat().st_size:,} bytes with the SHA-256 {digest}, expected {sha256}"
                )
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
