"""Downloads against a local server that breaks in every way a real one does."""

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

CONTENT = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
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
    """Serves CONTENT under every path, with ranges; `faults`, one a request, go before."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/net.pth"
        self.faults = []
        self.ranges = []
        """The Range header of each request, None where there is none."""
        self.sent = 0
        """Bytes of bodies."""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        self.close_connection = True
        self.server.ranges.append(self.headers.get("Range"))
        fault = self.server.faults.pop(0) if self.server.faults else serve
        fault(self)

    def head(self, status, length, **headers):
        self.send_response(status)
        for name, value in {"Content-Length": length, "Connection": "close", **headers}.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def body(self, content):
        try:
            self.wfile.write(content)
            self.server.sent += len(content)
        except OSError:  # the client has gone
            pass

    @property
    def start(self):
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        return int(asked[1]) if asked else 0


def serve(handler, *, limit=None, pause=0.0, after=lambda: None):
    """The rest of CONTENT, at most `limit` bytes of it, a `pause` between pieces, and then `after`."""
    start = handler.start
    if start >= len(CONTENT):
        handler.head(416, 0)
        return
    rest = {"Content_Range": f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"} if start else {}
    handler.head(206 if start else 200, len(CONTENT) - start, **rest)
    body = CONTENT[start:][:limit]
    for at in range(0, len(body), 20_000):
        handler.body(body[at : at + 20_000])
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


def no_ranges(handler):
    handler.head(200, len(CONTENT))
    handler.body(CONTENT)


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
    return sorted(file.name for file in path.parent.iterdir()) if path.parent.exists() else []


def part_of(path, content):
    path.parent.mkdir(exist_ok=True)
    part = path.with_name("net.pth.part")
    part.write_bytes(content)
    return part


def refused():
    """A URL whose port nobody listens at."""
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
    assert server.ranges == [None]
    assert names(path) == ["net.pth"]


def test_a_terminal_shows_a_bar_and_a_log_does_not(make_server, path, monkeypatch):
    for terminal in (True, False):
        screen = io.StringIO()
        screen.isatty = lambda terminal=terminal: terminal
        monkeypatch.setattr(sys, "stderr", screen)
        part_of(path, CONTENT[:100_000])
        download(make_server().url, path, sha256=SHA256)
        assert ("net.pth:  33%" in screen.getvalue()) == terminal  # what was there counts
        assert ("300k/300k" in screen.getvalue()) == terminal
        path.unlink()


@pytest.mark.parametrize("sha256", ["", "0", SHA256[:7], "g" * 8, SHA256 + "0", f"sha256:{SHA256}"])
def test_a_hash_that_verifies_nothing_is_refused(make_server, path, sha256):
    server = make_server()
    with pytest.raises(DownloadError, match="8 to 64 hex digits"):
        download(server.url, path, sha256=sha256)
    assert server.ranges == []


def test_no_url(path):
    fails([], path, "no URL is given")


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "ftp://127.0.0.1/net.pth", "/etc/passwd", "http:///net.pth", "http://a:b/net.pth",
     "http://[::1/net.pth", "http://127.0.0.1/a b", "http://127.0.0.1/a\nb", ""],
)  # fmt: skip
def test_only_http(path, url):
    fails([url], path, "only http:// and https://")
    assert not path.parent.exists()


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/net.pth"])
def test_a_redirection_cannot_leave_http(make_server, path, target):
    fails(
        make_server(*[lambda handler: handler.head(302, 0, Location=target)] * 3).url, path, "cannot download"
    )
    assert names(path) == []


def test_a_redirection_is_followed_and_resumed(make_server, path):
    server = make_server(lambda handler: handler.head(302, 0, Location="/elsewhere"), cut)
    download(server.url, path, sha256=SHA256)
    assert server.ranges == [None, None, "bytes=100000-"]


@pytest.mark.parametrize(
    "content", [other_content, lambda handler: handler.head(200, 0)], ids=["other", "empty"]
)
def test_other_content_is_not_kept_and_not_asked_for_again(make_server, path, content):
    server = make_server(content)
    message = fails(server.url, path, f"SHA-256 begins with .* instead of {SHA256[:8]}")
    assert f"`curl -fL -o {path} {server.url}`" in message
    assert server.ranges == [None]
    assert names(path) == []


def test_a_broken_connection_is_resumed(make_server, path):
    server = make_server(cut, cut)
    download(server.url, path, sha256=SHA256)
    assert path.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=100000-", "bytes=200000-"]
    assert server.sent == len(CONTENT)  # nothing twice


def test_broken_for_ever_ends_after_three_tries_and_keeps_the_part(make_server, path):
    server = make_server(*[lambda handler: serve(handler, limit=50_000)] * 3)
    fails(server.url, path, "broke off after 150,000 of 300,000 bytes")
    assert len(server.ranges) == 3
    assert names(path) == ["net.pth.part"]
    download(server.url, path, sha256=SHA256)
    assert server.ranges[3:] == ["bytes=150000-"]
    assert names(path) == ["net.pth"]


def test_a_body_in_chunks_that_breaks_off_is_resumed(make_server, path):
    def chunked(handler):
        handler.head(200, None, Transfer_Encoding="chunked")
        handler.body(b"%x\r\n%b\r\n" % (100_000, CONTENT[:100_000]))

    server = make_server(chunked)
    download(server.url, path, sha256=SHA256)
    assert server.ranges == [None, "bytes=100000-"]


def test_an_error_of_the_server_is_asked_again(make_server, path):
    server = make_server(status(500), status(503))
    download(server.url, path, sha256=SHA256)
    assert len(server.ranges) == 3


def test_an_error_for_ever_is_asked_exactly_three_times(make_server, path):
    server = make_server(*[status(500)] * 9)
    fails(server.url, path, "HTTP Error 500")
    assert len(server.ranges) == 3
    assert names(path) == []


@pytest.mark.parametrize("code", [401, 403, 404, 410, 429])
def test_a_refusal_is_not_asked_again(make_server, path, code):
    server = make_server(status(code))
    fails(server.url, path, f"HTTP Error {code}")
    assert len(server.ranges) == 1
    assert names(path) == []


def test_a_stalled_connection_is_resumed(make_server, path):
    release = threading.Event()
    server = make_server(lambda handler: serve(handler, limit=100_000, after=release.wait))
    started = time.monotonic()
    download(server.url, path, sha256=SHA256, timeout=0.3)
    release.set()
    assert time.monotonic() - started < 5
    assert server.ranges == [None, "bytes=100000-"]
    assert path.read_bytes() == CONTENT


def test_a_slow_server_is_waited_for(make_server, path):
    server = make_server(lambda handler: serve(handler, pause=0.1))  # 1.5 s in all
    download(server.url, path, sha256=SHA256, timeout=0.5)
    assert server.ranges == [None]


def test_a_server_without_ranges_starts_anew(make_server, path):
    part_of(path, CONTENT[:100_000])
    server = make_server(no_ranges)
    download(server.url, path, sha256=SHA256)
    assert server.ranges == ["bytes=100000-"]
    assert path.read_bytes() == CONTENT


def test_a_part_of_another_file_is_thrown_away(make_server, path):
    part_of(path, b"x" * 100_000)
    server = make_server()
    download(server.url, path, sha256=SHA256)
    assert server.ranges == ["bytes=100000-", None]


def test_a_part_longer_than_the_file_is_thrown_away(make_server, path):
    part_of(path, b"x" * 400_000)
    server = make_server()
    download(server.url, path, sha256=SHA256)
    assert server.ranges == ["bytes=400000-", None]


@pytest.mark.parametrize("said", [None, "nonsense", f"bytes 200000-200004/{len(CONTENT)}"])
def test_a_range_nobody_asked_for_is_thrown_away(make_server, path, said):
    def elsewhere(handler):
        if not handler.start:
            return serve(handler)
        handler.head(206, 5, Content_Range=said)
        return handler.body(CONTENT[200_000:200_005])

    part_of(path, CONTENT[:100_000])
    server = make_server(*[elsewhere] * 3)
    download(server.url, path, sha256=SHA256)
    assert server.ranges == ["bytes=100000-", None]


def test_a_whole_part_needs_no_server(path):
    part_of(path, CONTENT)
    download(refused(), path, sha256=SHA256)
    assert names(path) == ["net.pth"]


def test_a_login_page_does_not_cost_the_part(make_server, path):
    part = part_of(path, CONTENT[:100_000])
    fails(make_server(web_page).url, path, "answered with a web page")
    assert part.stat().st_size == 100_000


@pytest.mark.parametrize("fault", [status(404), status(500), web_page, other_content, cut])
def test_the_mirror_is_asked_next(make_server, path, fault):
    official, mirror = make_server(fault), make_server()
    download([official.url, mirror.url], path, sha256=SHA256)
    assert path.read_bytes() == CONTENT
    assert len(official.ranges) == len(mirror.ranges) == 1


def test_the_mirror_stands_in_for_a_dead_server(make_server, path):
    mirror = make_server()
    download([refused(), mirror.url], path, sha256=SHA256)
    assert path.read_bytes() == CONTENT


def test_every_mirror_gets_a_chance(make_server, path):
    refusing = [make_server(status(404)) for _ in range(4)]
    download([server.url for server in [*refusing, make_server()]], path, sha256=SHA256)
    assert path.read_bytes() == CONTENT


def test_each_servers_reason_is_said(make_server, path):
    servers = make_server(status(404)), make_server(web_page)
    message = fails([server.url for server in servers], path, "127.0.0.1: HTTP Error 404.*; .*web page")
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


def test_offline_is_said_within_five_seconds(silent, path, monkeypatch):
    look_up = socket.getaddrinfo

    def slow(host, *arguments, **keywords):
        if host == "slow.invalid":
            time.sleep(30)
        return look_up(host, *arguments, **keywords)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    urls = [silent, "https://slow.invalid/net.pth", refused(), "https://nowhere.invalid/net.pth"]
    started = time.monotonic()
    message = fails(urls, path, "slow.invalid: no answer within 4 s")
    assert time.monotonic() - started < 5
    assert f"`curl -fL -o {path} {silent}`" in message
    assert "refused" in message
    assert names(path) == []


def test_a_silent_server_leaves_time_for_the_mirror(silent, make_server, path):
    download([silent, make_server().url], path, sha256=SHA256)
    assert path.read_bytes() == CONTENT


def test_the_way_by_hand_is_quoted_for_a_shell(tmp_path):
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
    with pytest.raises(DownloadError, match="cannot read .*net.pth: Is a directory"):
        download(make_server().url, path, sha256=SHA256)


def test_a_file_in_the_way_of_the_folder(make_server, path):
    path.parent.write_text("")
    with pytest.raises(DownloadError, match=r"cannot write .*net\.pth: File exists"):
        download(make_server().url, path, sha256=SHA256)


def test_a_disk_too_small_is_said_before_writing(make_server, path, monkeypatch):
    usage = type(shutil.disk_usage("."))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**6, 10**6 - 1234, 1234))
    server = make_server()
    fails(server.url, path, "no room for net.pth in .*: 300,000 more bytes are needed, 1,234 are free")
    assert server.ranges == [None]
    assert names(path) == []


def test_a_disk_that_fills_up_is_said_and_emptied(make_server, path):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
    child = run_child(make_server().url, path, before=limit)
    assert child.wait(30) == 1
    assert re.search("DownloadError: no room for net.pth in .*: more than 100,000 bytes", child.stderr.read())
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


def test_a_killed_download_is_resumed_by_the_process_that_waits_for_it(make_server, path):
    release = threading.Event()
    server = make_server(lambda handler: serve(handler, limit=100_000, after=release.wait))
    part = path.with_name("net.pth.part")
    first = run_child(server.url, path)
    wait_for(lambda: part.exists() and part.stat().st_size == 100_000)
    second = run_child(server.url, path)
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(1.5)
    assert names(path) == ["net.pth.part"]
    assert len(server.ranges) == 1
    first.send_signal(signal.SIGKILL)
    assert second.wait(20) == 0, second.stderr.read()
    release.set()
    first.wait()
    assert path.read_bytes() == CONTENT
    assert names(path) == ["net.pth"]
    assert server.ranges == [None, "bytes=100000-"]
    assert server.sent == len(CONTENT)


def test_a_part_removed_while_waiting_for_it_is_made_anew(make_server, path):
    fcntl = pytest.importorskip("fcntl")
    part = part_of(path, b"")
    waiting = threading.Thread(target=download, args=(make_server().url, path), kwargs={"sha256": SHA256})
    with part.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        waiting.start()
        time.sleep(0.3)
        assert not path.exists()
        part.unlink()
    waiting.join(10)
    assert path.read_bytes() == CONTENT
    assert names(path) == ["net.pth"]


def test_processes_at_once_download_once(make_server, path):
    server = make_server(lambda handler: serve(handler, pause=0.1))
    children = [run_child(server.url, path) for _ in range(4)]
    for child in children:
        assert child.wait(60) == 0, child.stderr.read()
    assert server.ranges == [None]
    assert path.read_bytes() == CONTENT
    assert names(path) == ["net.pth"]


@pytest.mark.parametrize("lock", [None, "refused"])
def test_without_locks_each_process_has_its_own_part(make_server, path, monkeypatch, lock):
    if lock is None:
        monkeypatch.setattr(module, "fcntl", None)
    else:  # some network file systems

        def flock(file, operation):
            raise OSError(38, "Function not implemented")

        monkeypatch.setattr(module.fcntl, "flock", flock)
    mine, seen = f"net.pth.part{os.getpid()}", []
    server = make_server(
        lambda handler: serve(handler, limit=100_000, after=lambda: seen.extend(names(path)))
    )
    download(server.url, path, sha256=SHA256)
    assert seen == [mine]
    assert path.read_bytes() == CONTENT
    assert names(path) == ["net.pth"]
    path.unlink()
    fails(make_server(cut, cut, status(500)).url, path, r"cannot download net\.pth \(.*HTTP Error 500")
    assert names(path) == []
