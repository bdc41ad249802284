"""What `pip install` of the wheel gives: the command in an empty folder, with nothing of the checkout."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "train={iterations: 2, save_every: 2, batch_size: 2, precision: fp32}", "data.workers=0",
    "data={min_size_train: [96], max_size_train: 96, min_size_test: 96, max_size_test: 96}",
    "model={fpn_channels: 32, box_head_dim: 32, mask_head_convs: 1, mask_head_dim: 32}",
    "model={rpn_post_nms_test: 5, roi_batch: 16}",
]  # fmt: skip
CONFIG = "quick/mask_rcnn_res2net50"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder that the wheel is installed into; libraries are those of this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("res2net_dense", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=unwanted)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-cache-dir"]
    links = ["--no-index", "--find-links", folder, "--target", folder / "site"]
    steps = [
        ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source],
        ["install", "--no-deps", *links, "res2net_dense"],
    ]
    for step in steps:
        done = subprocess.run([*pip, *map(str, step)], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
    shutil.rmtree(source)
    return folder / "site"


@pytest.fixture
def command(installed, tmp_path):
    """Run `res2net-dense` in an empty folder; returns the finished process."""

    def run(*arguments, code=0):
        process = subprocess.run(
            [installed / "bin/res2net-dense", *map(str, arguments)],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"},
            capture_output=True, text=True, timeout=900,
        )  # fmt: skip
        assert process.returncode == code, process.stdout + process.stderr
        return process

    return run


def test_the_package_is_the_installed_one_with_all_configs(installed, command):
    code = (
        "import res2net_dense; from res2net_dense.config.find import config_names, find_config\n"
        "print(res2net_dense.__file__, *(find_config(name) for name in config_names()), sep='\\n')"
    )
    env = {**os.environ, "PYTHONPATH": str(installed)}
    run = [sys.executable, "-c", code]
    process = subprocess.run(run, cwd=installed.parent, env=env, capture_output=True, text=True, check=True)
    package, *configs = map(Path, process.stdout.splitlines())
    assert package == installed / "res2net_dense/__init__.py"
    names = {path.relative_to(installed / "res2net_dense/configs") for path in configs}
    shipped = {path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.yaml")}
    assert names == {path for path in shipped if path.parts[0] != "_base_"}


def test_help_and_the_doctor(command):
    assert "score-saliency" in command("--help").stdout
    assert "The main job can run." in command("doctor").stdout


def test_a_remedy_can_be_followed(command, tmp_path):
    """Train without data: the command in the message makes it, and then the training runs."""
    train = ["train", "--config", CONFIG, "--output-dir", "run", *TINY]
    (line,) = command(*train, code=1).stderr.splitlines()
    assert not re.search(r"\.py\b|\.md\b|configs/|\.txt\b", line), line
    (remedy,) = re.findall(r"`res2net-dense (toy [^`]*)`", line)
    command(*remedy.split(), "--train=6", "--val=2", "--size=96")
    assert "6 images" in command("check", "--config", CONFIG).stdout
    command(*train)
    command("predict", "--weights", "run", "--input", "datasets/toy/coco/val", "--output", "out")
    assert len(list((tmp_path / "out").glob("*.png"))) == 2


def test_the_demo(command, tmp_path):
    command("toy", "--output", "datasets/toy")
    annotations = tmp_path / "datasets/toy/coco/annotations"
    assert sorted(path.name for path in annotations.iterdir()) == ["train.json", "val.json"]
    out = command("demo", *TINY).stdout
    assert "already there, nothing to do" in out
    assert (tmp_path / "output/demo/results.json").is_file()
    assert len(list((tmp_path / "output/demo/predictions").glob("*.png"))) == 40
