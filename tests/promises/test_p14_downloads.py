"""P14: a download is what it says: its path exists only with the right SHA-256, after at most three tries;
offline fails within five seconds with the command to do it by hand. A local server breaks as real ones do.
"""

import contextlib
import hashlib
import http.server
import io
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from res2net_dense import download as module
from res2net_dense.download import download
from res2net_dense.errors import DownloadError
from res2net_dense.files import NO_LOCKS

CONTENT = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
SERVER = r"http://127\.0\.0\.1:\d+/net\.pth"
PACKAGE = Path(module.__file__).parent
# The package without its __init__, which imports torch: a child starts in a tenth of the time.
CHILD = """
import sys, types
sys.modules["res2net_dense"] = types.ModuleType("res2net_dense")
sys.modules["res2net_dense"].__path__ = [sys.argv[1]]
from res2net_dense.download import download
download(sys.argv[2], sys.argv[3], sha256=sys.argv[4])
"""


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT under every path; `faults`, one per request, go before."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/net.pth"
        self.faults = []
        self.requests = 0


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        self.close_connection = True
        self.server.requests += 1
        fault = self.server.faults.pop(0) if self.server.faults else serve
        fault(self)

    def head(self, status, length, **headers):
        self.send_response(status)
        for name, value in {"Content-Length": length, "Connection": "close", **headers}.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def body(self, content):
        with contextlib.suppress(OSError):  # the client has gone
            self.wfile.write(content)


def serve(handler, *, limit=None, pause=0.0, after=lambda: None):
    """CONTENT, at most `limit` bytes of it, a `pause` between pieces, and then `after`."""
    handler.head(200, len(CONTENT))
    for at in range(0, len(CONTENT[:limit]), 20_000):
        handler.body(CONTENT[:limit][at : at + 20_000])
        time.sleep(pause)
    after()


def cut(handler):
    serve(handler, limit=100_000)


def status(code):
    return lambda handler: handler.head(code, 0)


def web_page(handler):
    handler.head(200, 11, Content_Type="text/html; charset=utf-8")
    handler.body(b"please pay!")


def other_content(handler):
    handler.head(200, 5)
    handler.body(b"wrong")


@pytest.fixture(autouse=True)
def plain_network(monkeypatch):
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.0)


@pytest.fixture
def make_server():
    servers = []

    def make(*faults):
        server = Server()
        server.faults = list(faults)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return server

    yield make
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "net.pth"


def names(path):
    """The files in the folder of `path` but for the lock, which stays."""
    found = path.parent.iterdir() if path.parent.exists() else []
    return sorted(file.name for file in found if file.name != ".net.pth.lock")


def refused():
    """A URL where no server listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{sock.getsockname()[1]}/net.pth"


def fails(urls, path, words, **keywords):
    """The one line of a download that must fail and leave no file behind."""
    with pytest.raises(DownloadError, match=words) as caught:
        download(urls, path, sha256=SHA256, **keywords)
    message = str(caught.value)
    assert "\n" not in message
    assert not path.exists()
    return message


@pytest.mark.parametrize("sha256", [SHA256, SHA256[:8], SHA256.upper()])
def test_a_download_lands_alone_and_once(make_server, path, sha256):
    server = make_server()
    assert download([server.url], path, sha256=sha256) == path
    assert path.read_bytes() == CONTENT
    download(server.url, path, sha256=sha256)
    assert server.requests == 1
    assert names(path) == ["net.pth"]


def test_a_terminal_shows_a_bar_and_a_log_does_not(make_server, path, monkeypatch):
    for terminal in (True, False):
        screen = io.StringIO()
        screen.isatty = lambda terminal=terminal: terminal
        monkeypatch.setattr(sys, "stderr", screen)
        download(make_server().url, path, sha256=SHA256)
        assert ("net.pth: 100%" in screen.getvalue()) == terminal
        assert ("300k/300k" in screen.getvalue()) == terminal
        path.unlink()


@pytest.mark.parametrize("sha256", ["", "0", SHA256[:7], "g" * 8, SHA256 + "0", f"sha256:{SHA256}"])
def test_a_hash_that_verifies_nothing_is_refused(make_server, path, sha256):
    server = make_server()
    with pytest.raises(DownloadError, match="8 to 64 hex digits"):
        download(server.url, path, sha256=sha256)
    assert server.requests == 0


@pytest.mark.parametrize(
    "urls", [[], "file:///etc/passwd", "ftp://127.0.0.1/net.pth", "/etc/passwd", "http://a b"]
)
def test_only_http(path, urls):
    fails(urls, path, "http:// or https:// URLs are needed")
    assert not path.parent.exists()


@pytest.mark.parametrize("url", ["http:///net.pth", "http://a:b/net.pth", "http://[::1/net.pth"])
def test_a_malformed_url_is_one_line(path, url):
    fails(url, path, "cannot download net.pth")


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/net.pth"])
def test_a_redirection_cannot_leave_http(make_server, path, target):
    fails(
        make_server(*[lambda handler: handler.head(302, 0, Location=target)] * 3).url, path, "cannot download"
    )
    assert names(path) == []


def test_a_redirection_is_followed(make_server, path):
    server = make_server(lambda handler: handler.head(302, 0, Location="/elsewhere"), serve)
    download(server.url, path, sha256=SHA256)
    assert server.requests == 2


@pytest.mark.parametrize(
    "content", [other_content, lambda handler: handler.head(200, 0)], ids=["other", "empty"]
)
def test_other_content_is_not_kept_and_not_asked_for_again(make_server, path, content):
    server = make_server(content)
    message = fails(
        server.url, path, f"{SERVER}: sent . bytes with the SHA-256 [0-9a-f]{{64}}, expected {SHA256}"
    )
    assert f"`curl -fL -o {path} {server.url}`" in message
    assert server.requests == 1
    assert names(path) == []


def chunked(handler):
    """A body whose length is not known, which breaks off."""
    handler.head(200, None, Transfer_Encoding="chunked")
    handler.body(b"%x\r\n%b\r\n" % (100_000, CONTENT[:100_000]))


@pytest.mark.parametrize("faults", [[cut, cut], [chunked], [status(500), status(503)]])
def test_what_may_pass_is_tried_again(make_server, path, faults):
    server = make_server(*faults)
    download(server.url, path, sha256=SHA256)
    assert path.read_bytes() == CONTENT
    assert server.requests == len(faults) + 1
    assert names(path) == ["net.pth"]


@pytest.mark.parametrize(("fault", "words"), [(cut, "100000 bytes read"), (status(500), "HTTP error 500")])
def test_a_failure_that_stays_ends_after_three_attempts(make_server, path, fault, words):
    server = make_server(*[fault] * 9)
    fails(server.url, path, words)
    assert server.requests == 3
    assert names(path) == []


@pytest.mark.parametrize("code", [401, 403, 404, 410, 429])
def test_a_refusal_is_not_asked_again(make_server, path, code):
    server = make_server(status(code))
    fails(server.url, path, f"HTTP error {code}")
    assert server.requests == 1
    assert names(path) == []


def test_a_stalled_connection_is_tried_again(make_server, path):
    release = threading.Event()
    server = make_server(lambda handler: serve(handler, limit=100_000, after=release.wait))
    started = time.monotonic()
    download(server.url, path, sha256=SHA256, timeout=0.3)
    release.set()
    assert time.monotonic() - started < 5
    assert server.requests == 2
    assert path.read_bytes() == CONTENT


def test_a_slow_server_is_waited_for(make_server, path):
    server = make_server(lambda handler: serve(handler, pause=0.1))  # 1.5 s in all
    download(server.url, path, sha256=SHA256, timeout=0.5)
    assert server.requests == 1


@pytest.mark.parametrize("fault", [status(404), status(500), web_page, other_content, cut])
def test_the_mirror_is_asked_next(make_server, path, fault):
    official, mirror = make_server(fault), make_server()
    download([official.url, mirror.url], path, sha256=SHA256)
    assert path.read_bytes() == CONTENT
    assert official.requests == mirror.requests == 1


def test_the_mirror_stands_in_for_a_dead_server(make_server, path):
    mirror = make_server()
    download([refused(), mirror.url], path, sha256=SHA256)
    assert path.read_bytes() == CONTENT


def test_the_path_never_has_other_content_while_servers_fail(make_server, path, monkeypatch):
    """Looked at whenever a piece arrives and whenever a file changes its name."""
    found = []

    def look(*_, **__):
        found.append(path.read_bytes() if path.exists() else None)

    def watched(fault):
        return lambda handler: (look(), fault(handler), look())

    def slow(handler):
        serve(handler, pause=0.01, after=look)

    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *names: (look(), replace(*names), look()))
    broken = [make_server(watched(fault)) for fault in (other_content, cut, status(500), web_page)]
    download([server.url for server in [*broken, make_server(slow)]], path, sha256=SHA256)
    assert found[-1] == CONTENT
    assert set(found) == {None, CONTENT}
    assert len(found) > 8


def test_an_interrupted_download_is_done_again(make_server, path):
    """By Ctrl-C: no file is left, and the next download starts again."""
    release = threading.Event()
    server = make_server(lambda handler: serve(handler, limit=100_000, after=release.wait))
    child = run_child(server.url, path)
    wait_for(path.with_name(".net.pth.part").exists)
    child.send_signal(signal.SIGINT)
    assert child.wait(20) != 0
    release.set()
    assert names(path) == []
    download(server.url, path, sha256=SHA256)
    assert path.read_bytes() == CONTENT
    assert server.requests == 2


def test_every_mirror_gets_a_chance(make_server, path):
    refusing = [make_server(status(404)) for _ in range(4)]
    download([server.url for server in [*refusing, make_server()]], path, sha256=SHA256)
    assert path.read_bytes() == CONTENT


def test_the_reason_of_each_server_is_given(make_server, path):
    servers = make_server(status(404)), make_server(web_page)
    message = fails(
        [server.url for server in servers], path, f"{SERVER}: HTTP error 404; {SERVER}: .*web page"
    )
    assert message.count("curl") == 1


@pytest.fixture
def silent():
    """A URL whose server never accepts: its queue is full, so that the kernel drops what comes."""
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for sock in (first, second):
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/net.pth"


def test_offline_is_reported_within_five_seconds(silent, path, monkeypatch):
    look_up = socket.getaddrinfo

    def slow(host, *arguments, **keywords):
        if host == "slow.invalid":
            time.sleep(30)
        return look_up(host, *arguments, **keywords)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    urls = [silent, "https://slow.invalid/net.pth", refused(), "https://nowhere.invalid/net.pth"]
    started = time.monotonic()
    message = fails(urls, path, "slow.invalid/net.pth: no answer within 4 s")
    assert time.monotonic() - started < 5
    assert f"`curl -fL -o {path} {silent}`" in message
    assert "refused" in message
    assert names(path) == []


def test_a_silent_server_leaves_time_for_the_mirror(silent, make_server, path):
    download([silent, make_server().url], path, sha256=SHA256)
    assert path.read_bytes() == CONTENT


def test_the_command_to_do_it_by_hand_is_quoted_for_a_shell(tmp_path):
    path = tmp_path / "my cache" / "a'b.pth"
    message = fails("http://127.0.0.1:1/net.pth?a=1&b=2", path, "by hand")
    command = re.search("`(.*)`", message)[1]
    words = subprocess.run(
        ["sh", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True, check=True
    )
    assert words.stdout.splitlines() == ["curl", "-fL", "-o", str(path), "http://127.0.0.1:1/net.pth?a=1&b=2"]


def test_the_proxy_of_the_environment_is_used(make_server, path, monkeypatch):
    proxy = make_server()
    monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/net.pth"))
    download("http://nowhere.invalid/net.pth", path, sha256=SHA256)
    assert path.read_bytes() == CONTENT


def test_bit_rot_in_the_cache_is_noticed(make_server, path):
    server = make_server()
    download(server.url, path, sha256=SHA256)
    rotten = bytearray(CONTENT)
    rotten[150_000] ^= 1
    path.write_bytes(rotten)
    with pytest.warns(UserWarning, match="moved to .*net.pth.damaged"):
        download(server.url, path, sha256=SHA256)
    assert path.read_bytes() == CONTENT
    assert path.with_name("net.pth.damaged").read_bytes() == rotten


def test_a_wrong_file_does_not_stay_at_the_path_offline(path):
    path.parent.mkdir()
    path.write_bytes(b"wrong")
    with pytest.warns(UserWarning, match=r"net\.pth\.damaged"):
        fails(refused(), path, "refused")


def test_a_folder_in_the_way(make_server, path):
    path.mkdir(parents=True)
    with pytest.raises(DownloadError, match="cannot write .*net.pth: Is a directory"):
        download(make_server().url, path, sha256=SHA256)


def test_a_file_in_the_way_of_the_folder(make_server, path):
    path.parent.write_text("")
    with pytest.raises(DownloadError, match=r"cannot write .*net\.pth: (File exists|Not a directory)"):
        download(make_server().url, path, sha256=SHA256)


def test_a_disk_too_small_is_reported_before_writing(make_server, path, monkeypatch):
    usage = type(shutil.disk_usage("."))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**6, 10**6 - 1234, 1234))
    server = make_server()
    fails(server.url, path, "no space for net.pth in .*: 300,000 bytes are needed, 1,234 are free")
    assert server.requests == 1
    assert names(path) == []


def test_the_lock_that_stays_is_for_everyone_who_shares_the_folder(path):
    before = os.umask(0o022)
    try:
        fails(refused(), path, "refused")
    finally:
        os.umask(before)
    assert path.with_name(".net.pth.lock").stat().st_mode & 0o666 == 0o666


@pytest.mark.parametrize("number", NO_LOCKS)
def test_where_files_cannot_be_locked_every_process_downloads(make_server, path, monkeypatch, number):
    def flock(descriptor, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    # The other process, killed or still at it.
    path.parent.mkdir()
    theirs = path.with_name(".net.pth.part")
    theirs.write_bytes(b"half")
    download(make_server().url, path, sha256=SHA256)
    assert path.read_bytes() == CONTENT
    assert theirs.read_bytes() == b"half"
    assert names(path) == [".net.pth.part", "net.pth"]


def test_a_disk_that_fills_up_is_reported_and_emptied(make_server, path):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
    child = run_child(make_server().url, path, before=limit)
    assert child.wait(30) == 1
    assert re.search("DownloadError: cannot write .*net.pth: File too large", child.stderr.read())
    assert names(path) == []


def run_child(url, path, *, before=""):
    """Another process that downloads."""
    return subprocess.Popen(
        [sys.executable, "-c", before + CHILD, str(PACKAGE), url, str(path), SHA256],
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_killed_download_leaves_nothing_in_the_way_of_the_process_that_waits_for_it(make_server, path):
    release = threading.Event()
    server = make_server(lambda handler: serve(handler, limit=100_000, after=release.wait))
    part = path.with_name(".net.pth.part")
    first = run_child(server.url, path)
    wait_for(part.exists)
    second = run_child(server.url, path)
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(1.5)
    assert names(path) == [".net.pth.part"]
    assert server.requests == 1
    first.send_signal(signal.SIGKILL)
    assert second.wait(20) == 0, second.stderr.read()
    release.set()
    first.wait()
    assert path.read_bytes() == CONTENT
    assert names(path) == ["net.pth"]
    assert server.requests == 2


def test_processes_at_once_download_once(make_server, path):
    server = make_server(lambda handler: serve(handler, pause=0.1))
    children = [run_child(server.url, path) for _ in range(4)]
    for child in children:
        assert child.wait(60) == 0, child.stderr.read()
    assert server.requests == 1
    assert path.read_bytes() == CONTENT
    assert names(path) == ["net.pth"]
