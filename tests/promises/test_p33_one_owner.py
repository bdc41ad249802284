"""P33: a run folder has one owner. Of any processes that want it at once one gets it, wherever they run and
whatever they are called; a crash frees it, and nothing replaces the results of a live run.
"""

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from saved_runs import small_config, small_run

from res2net_dense import evaluate, train
from res2net_dense.cli import demo, main
from res2net_dense.engine.run_folder import own_folder
from res2net_dense.errors import ConfigError

OWNERS = """
import os, sys, time
from res2net_dense.engine.run_folder import own_folder
begin, end = os.pipe()
for _ in range(int(sys.argv[2])):
    if os.fork() == 0:
        os.close(end)
        os.read(begin, 1)
        try:
            with own_folder(sys.argv[1]):
                if os.fork() == 0:  # a worker of a loader outlives a killed owner for a while
                    time.sleep(60)
                os.write(1, f"{os.getpid()} owner\\n".encode())
                time.sleep(60)
        except Exception as error:
            os.write(1, f"{os.getpid()} {error}\\n".encode())  # in one piece
        os._exit(0)
os.close(end)
time.sleep(60)
"""


@pytest.fixture
def race():
    """Let processes try at once to own a folder; returns the process id and the answer of each."""
    started = []

    def race(count: int, folder: Path) -> dict[int, str]:
        command = [sys.executable, "-c", OWNERS, folder, str(count)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True))
        lines = [started[-1].stdout.readline().strip().partition(" ") for _ in range(count)]
        return {int(pid): answer for pid, _, answer in lines}

    yield race
    for process in started:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize("rounds", [1, pytest.param(75, marks=pytest.mark.slow)])
def test_of_twelve_processes_at_once_one_owns_the_folder(race, tmp_path, rounds):
    """Round after round in one folder, whose owner is killed each time."""
    for _ in range(rounds):
        one_round(race, tmp_path)


def one_round(race, tmp_path):
    answers = race(12, tmp_path / "run")
    (owner,) = (pid for pid, answer in answers.items() if answer == "owner")
    del answers[owner]
    assert len(answers) == 11
    assert all(f"{tmp_path / 'run'} is in use by" in answer for answer in answers.values())
    with pytest.raises(ConfigError, match=f"in use by process {owner} on .* since .*--output-dir"):
        own_folder(tmp_path / "run").__enter__()
    os.kill(owner, signal.SIGKILL)
    assert_free(tmp_path / "run")  # though its worker is alive


def assert_free(folder: Path) -> None:
    """A killed process has a moment to die in."""
    deadline = time.monotonic() + 1
    while True:
        try:
            with own_folder(folder):
                assert (folder / "run.lock").read_text().startswith(f"process {os.getpid()} on ")
            assert not (folder / "run.lock").exists()
            return
        except ConfigError:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_neither_equal_pids_nor_another_host_name_free_a_folder(
    race, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in two containers that share a folder, or on a laptop that changed its name."""
    (owner,) = race(1, tmp_path)
    for pid, host in ((owner, socket.gethostname()), (owner, "renamed"), (1, "renamed")):
        with monkeypatch.context() as faked:
            faked.setattr("os.getpid", lambda pid=pid: pid)
            faked.setattr("socket.gethostname", lambda host=host: host)
            with pytest.raises(ConfigError, match=f"in use by process {owner} on "):
                own_folder(tmp_path).__enter__()
    os.kill(owner, signal.SIGKILL)
    assert_free(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    with own_folder(tmp_path) as folder:
        assert folder == tmp_path
    assert f"{tmp_path} cannot be locked ({os.strerror(number)}): make sure that no second run" in caplog.text


def test_nothing_replaces_the_results_of_a_live_run(tmp_path):
    config = small_config(tmp_path)
    run = small_run(tmp_path)
    (run / ".results.json.tmp-999999999").write_text("what the live run is writing")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with own_folder(run):
        for use in (
            lambda: evaluate(run),
            lambda: evaluate(run, save_predictions=True),
            lambda: evaluate(config=config),
            lambda: train(config, resume=True),
            lambda: train(config),
        ):
            with pytest.raises(ConfigError, match="in use by process .*--output-dir"):
                use()
        evaluate(run, output_dir=tmp_path / "other")
        (run / demo.MARK).touch()  # a demo that is trained further
        with pytest.raises(ConfigError, match="in use by process"):
            demo.clear(run, overwrite=True)
        assert {path: path.read_bytes() for path in before} == before
    evaluate(run)


def test_predict_leaves_a_folder_in_use_alone(tmp_path, capsys):
    """That of a live run, or of another prediction."""
    run = small_run(tmp_path)
    command = ["predict", "--weights", str(run), "--input", str(tmp_path / "data/val"), "--output"]
    (run / ".predictions.json.tmp-999999999").write_text("what the other one is writing")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with own_folder(run):
        for arguments in ([], ["--continue"]):
            assert main([*command, str(run), *arguments]) == 1
            assert re.search("in use by process .* another folder with --output\n", capsys.readouterr().err)
        assert {path: path.read_bytes() for path in before} == before
        assert not list(run.glob("predictions*"))
        assert main([*command, str(tmp_path / "other")]) == 0
    assert main([*command, str(run)]) == 0
    assert not list(run.glob(".predictions.json.tmp-*"))


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_read_only_run_is_evaluated_into_another_folder(tmp_path, monkeypatch, number):
    run = small_run(tmp_path)
    plain = os.open

    def refuse(path, flags, *arguments, **keywords):
        if str(path).startswith(str(run)) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(number, os.strerror(number), str(path))
        return plain(path, flags, *arguments, **keywords)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ConfigError, match=f"cannot write to {run} .*--output-dir") as caught:
        evaluate(run)
    assert "\n" not in str(caught.value)
    assert evaluate(run, output_dir=tmp_path / "other").metrics
