"""Run a script in a process group of its own and do something to it: ended.py PLAN SCRIPT [ARGUMENTS].

PLAN is JSON: `{"terminal": KIND, "ignored": [SIGNALS], "steps": [STEP, ...]}`. Steps are `["lines", FILE, N]`
(wait until a file has as many lines), `["seen", TEXT]` (until it was printed), `["exists", PATTERN]`,
`["sleep", SECONDS]`, `["kill", "main" | "group" | "worker", NUMBER]`, `["close"]` (of the terminal). The
last line of the output is JSON: exit code, seconds from the first signal or closing to the end, seconds until
the last process of the group had gone, and what was printed.

The script is a fork of this process, and so has the libraries that it has imported.
"""

import contextlib
import fcntl
import glob
import json
import os
import select
import signal
import sys
import termios
import time
from pathlib import Path

from launcher import run_to_the_end

LIMIT = 120.0


class Process:
    def __init__(self, script, terminal, ignored):
        self.read, write = os.openpty() if terminal == "pty" else os.pipe()
        self.text, self.first = "", 0.0
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.read)
            os.setsid()
            if terminal == "pty":
                fcntl.ioctl(write, termios.TIOCSCTTY, 0)
            for number in (1, 2):
                os.dup2(write, number)
            os.close(write)
            for number in ignored:
                signal.signal(number, signal.SIG_IGN)
            run_to_the_end(script)
        os.close(write)

    def look(self, seconds=0.02):
        """Read what was printed meanwhile."""
        if self.read is None:
            time.sleep(seconds)
        elif select.select([self.read], [], [], seconds)[0]:
            try:
                text = os.read(self.read, 1 << 16).decode(errors="replace")
            except OSError:  # a pseudo terminal without a process
                text = ""
            self.text += text
            if not text:
                time.sleep(seconds)
        return not self.has_ended()

    def has_ended(self):
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def until(self, condition):
        late = time.monotonic() + LIMIT
        while not condition():
            if not self.look() or time.monotonic() > late:
                raise TimeoutError

    def close(self):
        self.first = self.first or time.monotonic()
        os.close(self.read)
        self.read = None

    def kill(self, whom, number):
        self.first = self.first or time.monotonic()
        if whom == "group":
            os.killpg(self.pid, number)
        elif whom == "main":
            os.kill(self.pid, number)
        else:
            children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
            os.kill(int(children[0]), number)

    def finish(self):
        self.first = self.first or time.monotonic()
        late = time.monotonic() + LIMIT
        while self.look() and time.monotonic() < late:
            pass
        seconds = time.monotonic() - self.first
        late = not self.has_ended()
        while self.read is not None and select.select([self.read], [], [], 0)[0]:
            before = self.text
            self.look()
            if self.text == before:
                break
        if late:
            os.killpg(self.pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        while alive(self.pid) and time.monotonic() - self.first < LIMIT:
            time.sleep(0.02)
        alone = time.monotonic() - self.first
        return {"code": code, "seconds": seconds, "alone": alone, "late": late, "text": self.text}


def alive(group):
    """Whether a process of this group still runs; a zombie does not."""
    for stat in glob.glob("/proc/[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, number = Path(stat).read_text().rpartition(")")[2].split()[:3]
            if int(number) == group and state != "Z":
                return True
    return False


def lines(file):
    with contextlib.suppress(FileNotFoundError):
        return Path(file).read_bytes().count(b"\n")
    return 0


def follow(process, steps):
    for what, *values in steps:
        if what == "lines":
            process.until(lambda values=values: lines(values[0]) >= values[1])
        elif what == "seen":
            process.until(lambda values=values: values[0] in process.text)
        elif what == "exists":
            process.until(lambda values=values: glob.glob(values[0], include_hidden=True))
        elif what == "sleep":
            late = time.monotonic() + values[0]
            while time.monotonic() < late:
                process.look()
        elif what == "kill":
            process.kill(*values)
        elif what == "close":
            process.close()


plan = json.loads(sys.argv[1])
sys.argv = sys.argv[2:]
sys.path[0] = str(Path(sys.argv[0]).parent)
process = Process(sys.argv[0], plan.get("terminal", "pipe"), plan.get("ignored", []))
try:
    follow(process, plan["steps"])
except (TimeoutError, ProcessLookupError):
    if not process.has_ended():
        os.killpg(process.pid, signal.SIGKILL)
        sys.exit(f"it waits for what does not come: {process.text}")
print(json.dumps(process.finish()))
