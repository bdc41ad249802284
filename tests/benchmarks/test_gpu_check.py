"""`make gpu`: a part that fails, crashes, hangs or cannot run stops no other, and each says what happened.
`make gpu-wheels`: which wheels, and what of them is used.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import zipfile

import pytest
import torch


@pytest.fixture
def gpu():
    import gpu

    return gpu


@pytest.fixture
def wheels():
    import gpu_wheels

    return gpu_wheels


GRANDCHILD = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on'); time.sleep(60)"
PASSED = "open(r'{json}', 'w').write('{{\"rows\": [\"{device}\"]}}')"
PARTS = {
    "hang": "open(r'{json}', 'w').write('{{\"rows\": [7]}}'); " + GRANDCHILD,
    "good": PASSED,
    "bad": "raise SystemExit(1)",
    "crash": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "skip": "open(r'{json}', 'w').write('{{\"skipped\": \"no such GPU\"}}'); raise SystemExit(3)",
    "garbage": "open(r'{json}', 'w').write('{{\"rows')",
    "after": PASSED,
}


@pytest.fixture
def check(gpu, tmp_path, monkeypatch, capsys):
    """Run the program with made-up parts, 1.5 seconds each; returns exit code, JSON and text."""

    def run(names, *arguments, **needs):
        parts = [gpu.Part(name, ("-c", PARTS[name]), 1.5, needs.get(name, ())) for name in names]
        monkeypatch.setattr(gpu, "PARTS", parts)
        monkeypatch.setattr(gpu, "facts", lambda environment, device: {"torch": "a version"})
        path = tmp_path / "new" / "gpu.json"
        monkeypatch.setattr(gpu, "KILLED_AFTER", 1.0)
        names = ",".join(names)
        code = gpu.main(
            ["--device=cpu", f"--only={names}", f"--json={path}", f"--budget={1.5 * len(parts)}", *arguments]
        )
        return code, json.loads(path.read_text()), capsys.readouterr().out

    return run


def test_each_part_for_itself(check):
    code, document, text = check(list(PARTS))
    parts = document["parts"]
    assert code == 1
    assert {name: part["status"] for name, part in parts.items()} == {
        "hang": "late", "good": "passed", "bad": "failed", "crash": "failed", "skip": "skipped",
        "garbage": "passed", "after": "passed",
    }  # fmt: skip
    assert parts["good"]["rows"] == parts["after"]["rows"] == ["cpu"]
    assert parts["hang"]["rows"] == [7]  # what it had is kept
    assert parts["crash"]["reason"] == "exit code -11"
    assert parts["skip"]["reason"] == "no such GPU"
    assert all(text.count(name) >= 2 for name in PARTS)  # a heading, and a line at the end
    assert document["machine"] == {"torch": "a version"}


def test_nothing_is_left_running(check):
    start = time.monotonic()
    check(["hang"])
    assert time.monotonic() - start < 30  # not the minute that the grandchild sleeps


def test_a_part_that_does_not_listen_is_killed(gpu, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(gpu, "KILLED_AFTER", 0.5)
    part = gpu.Part("stubborn", ("-c", STUBBORN), 1)
    start = time.monotonic()
    result = gpu.run(part, 2.0, "cpu", tmp_path, {**os.environ, "PYTHONPATH": ""})
    assert result["status"] == "late"
    assert result["exit_code"] == -9
    assert time.monotonic() - start < 20


def test_skipped_parts_are_no_failure(check):
    code, document, text = check(["good", "after"], after=("torch", "no_such_library"))
    assert code == 0
    assert document["parts"]["after"]["reason"] == "no_such_library not installed"
    assert document["parts"]["good"]["status"] == "passed"
    assert "no_such_library not installed" in text


def test_time_left_is_for_later_parts(gpu, check, monkeypatch):
    limits = []
    usual = gpu.run
    monkeypatch.setattr(
        gpu, "run", lambda part, seconds, *a: limits.append(seconds) or usual(part, seconds, *a)
    )
    check(["bad", "good", "after"])
    assert 1.3 < limits[0] <= 1.5
    assert limits[0] < limits[1] < limits[2] <= 4.5


def test_without_a_device_is_one_line(gpu, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = gpu.facts(dict(os.environ), "cuda")
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]
    monkeypatch.setattr(gpu, "facts", lambda environment, device: found)
    assert gpu.main([f"--json={tmp_path / 'gpu.json'}"]) == 2
    assert capsys.readouterr().out == "there is no CUDA device: PyTorch sees none\n"
    assert not (tmp_path / "gpu.json").exists()


def test_a_pytorch_that_does_not_start_is_one_line(gpu, tmp_path, capsys, monkeypatch):
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so is missing')")
    found = gpu.facts({**os.environ, "PYTHONPATH": str(tmp_path)}, "cuda")
    monkeypatch.setattr(gpu, "facts", lambda environment, device: found)
    assert gpu.main([f"--json={tmp_path / 'gpu.json'}"]) == 2
    text = capsys.readouterr().out
    assert text == "there is no CUDA device: OSError: libcudart.so is missing\n"


def test_names_of_parts(gpu):
    assert gpu.parse_names("train, block") == ["train", "block"]
    for text in ("", " , ", "block,blocks"):
        with pytest.raises(argparse.ArgumentTypeError, match="is not of tests, block, backbone, train"):
            gpu.parse_names(text)


@pytest.mark.slow
def test_all_marked_tests_are_run(gpu):
    """A fixture of a folder may mark them, or the test itself."""
    places = gpu.marked_tests()
    assert {"tests/gpu", "tests/engine/test_mean_losses.py"} <= set(places)
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--collect-only", "-p", "no:cacheprovider"]
    found = subprocess.run([*command, *places], cwd=gpu.ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
    assert "[cuda" in found.stdout


def test_the_report_of_pytest(gpu, tmp_path):
    """Made by pytest itself: what failed with its message, what was skipped with its reason."""
    (tmp_path / "test_all.py").write_text(
        "import pytest\ndef test_good(): pass\ndef test_bad(): assert 1 == 2\n"
        "def test_skipped(): pytest.skip('no GPU here')\n"
        "@pytest.fixture\ndef broken(): raise ValueError('x < y & z')\ndef test_error(broken): pass\n"
    )
    command = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml={json}", str(tmp_path))
    part = gpu.Part("tests", (*command, "-c", os.devnull, "--rootdir", str(tmp_path)), 60)
    result = gpu.run(part, 60.0, "cpu", tmp_path, dict(os.environ, PYTHONPATH=""))
    assert (result["status"], result["reason"]) == ("failed", "1 passed, 2 failed, 1 skipped")
    assert "assert 1 == 2" in result["failed"]["test_all::test_bad"]
    assert "x < y & z" in result["failed"]["test_all::test_error"]
    assert result["skipped_tests"] == {"test_all::test_skipped": "no GPU here"}


def test_every_wheel_is_in_the_lock_file_with_its_hash(wheels):
    texts = [(wheels.ROOT / "requirements" / name).read_text() for name in ("lock.txt", "detectron2.txt")]
    lines = wheels.requirements("\n".join(texts))
    assert sorted(lines) == sorted(wheels.NAMES)
    for name, line in lines.items():
        assert line.startswith(f"{name}==")
        assert "--hash=sha256:" in line
        assert ";" not in line


def test_the_version_for_the_images_python(wheels, monkeypatch):
    monkeypatch.setattr(wheels, "NAMES", ("pooch", "yacs"))
    text = (
        "pooch==1.0 ; python_full_version < '3.11' \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n"
        "pooch==2.0 ; python_full_version >= '3.12' \\\n    --hash=sha256:cc\n# a comment\n\n"
        "yacs==3.0 ; sys_platform == 'linux' \\\n    --hash=sha256:dd\nyacs==4.0 ; sys_platform == 'win32'\n"
        "other==1.0 \\\n    --hash=sha256:ee\n"
    )
    assert wheels.requirements(text) == {
        "pooch": "pooch==2.0 --hash=sha256:cc", "yacs": "yacs==3.0 --hash=sha256:dd",
    }  # fmt: skip
    with pytest.raises(SystemExit, match="requirements/ has no yacs: add it there"):
        wheels.requirements("pooch==2.0")


def write_wheel(path, *names):
    with zipfile.ZipFile(path, "w") as file:
        for name in names:
            file.writestr(name, f"# {name}")
    return path


def test_detectron2_without_what_is_compiled(wheels, tmp_path):
    names = [
        "detectron2/__init__.py", "detectron2/_C.cpython-310-x86_64-linux-gnu.so", "detectron2/tools/a.py",
        "tools/__init__.py", "sal_detectron2-0.7.2.dist-info/METADATA",
        "sal_detectron2-0.7.2.dist-info/RECORD",
    ]  # fmt: skip
    slim = wheels.slimmed(write_wheel(tmp_path / "sal_detectron2-0.7.2-cp310-cp310-linux.whl", *names))
    assert slim.name == "sal_detectron2-0.7.2-py3-none-any.whl"
    with zipfile.ZipFile(slim) as file:
        assert file.namelist() == [names[0], names[2], names[4]]
    other = write_wheel(tmp_path / "other-1.0-py3-none-any.whl", "tools/__init__.py")
    assert wheels.slimmed(other) == other


def test_only_what_is_missing_is_unpacked(wheels, gpu, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "wheels"
    folder.mkdir()
    write_wheel(folder / "pytest-1.0-py3-none-any.whl", "pytest/__init__.py")
    write_wheel(folder / "no_such_thing-1.0-py3-none-any.whl", "no_such_thing/__init__.py")
    environment = gpu.python_path(folder, tmp_path / "site")
    assert [path.name for path in (tmp_path / "site").iterdir()] == ["no_such_thing"]
    assert gpu.absent(["no_such_thing", "pytest", "never_heard_of"], environment) == ["never_heard_of"]
    assert "no_such_thing" not in sys.modules
    assert "no_such_thing" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="has no wheels: fill it with `make gpu-wheels`"):
        gpu.python_path(tmp_path, tmp_path / "site")
