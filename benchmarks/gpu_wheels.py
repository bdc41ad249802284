"""Collect what a bare CUDA image with Python 3.12, PyTorch and little else lacks: `make gpu-wheels`.

python benchmarks/gpu_wheels.py [--output build/gpu-wheels]

Run it where pip finds packages; the folder then goes with the checkout to a machine without network, whose
image stays as it is: `make gpu`, or `python benchmarks/gpu.py --wheels build/gpu-wheels`. The versions and
hashes are those of requirements/. The image itself has what is large: PyTorch, Triton, torchvision, timm,
OpenCV, SciPy, matplotlib, TensorBoard, onnxruntime, pytest.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build/gpu-wheels"
PYTHON = "3.12"
MOST_BYTES = 40_000_000
NAMES = (
    # the package itself
    "annotated-types", "defusedxml", "filelock", "msgspec", "platformdirs", "pooch", "pydantic",
    "pydantic-core", "safetensors", "tifffile", "tqdm", "typing-inspection",
    # augmentations, COCO's masks and scores, smp
    "albucore", "albumentations", "hotcoco", "pycocotools", "segmentation-models-pytorch", "simsimd",
    "stringzilla",
    # detectron2
    "antlr4-python3-runtime", "cloudpickle", "fvcore", "hydra-core", "iopath", "omegaconf", "portalocker",
    "sal-detectron2", "tabulate", "termcolor", "yacs",
    # the tests
    "execnet", "hypothesis", "pysodmetrics", "pytest-timeout", "pytest-xdist", "sortedcontainers",
)  # fmt: skip
# pip compares names exactly. First what old systems have too.
GLIBC = (28, 27, 24, 17, 12, 5, 31, 34, 35)
PLATFORMS = (
    *(f"manylinux_2_{minor}_x86_64" for minor in GLIBC),
    *("manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"),
)
DETECTRON2 = "sal-detectron2"
SOURCES = ("antlr4-python3-runtime", "fvcore", "iopath")  # pure Python that is published without wheels
_LEFT_OUT = re.compile(r"tools/|.*\.so$|.*/RECORD$")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of the wheels (build/gpu-wheels)")
    args = parser.parse_args()
    texts = [(ROOT / "requirements" / name).read_text() for name in ("lock.txt", "detectron2.txt")]
    collect(requirements("\n".join(texts)), args.output)
    return 0


def requirements(text: str) -> dict[str, str]:
    """The lines of a file of requirements, with their hashes, of `NAMES` for Linux and `PYTHON`."""
    from packaging.requirements import Requirement  # part of pip's own tools; the image need not have it

    there = {"python_version": PYTHON, "python_full_version": f"{PYTHON}.0", "sys_platform": "linux"}
    found = {}
    for line in text.replace("\\\n", " ").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        wanted = Requirement(line.split(" --hash")[0])
        if wanted.name in NAMES and (wanted.marker is None or wanted.marker.evaluate(there)):
            hashes = re.findall(r"--hash=\S+", line)
            found[wanted.name] = " ".join([f"{wanted.name}{wanted.specifier}", *hashes])
    if missing := sorted(set(NAMES) - found.keys()):
        sys.exit(f"requirements/ has no {', '.join(missing)}: add it there, or take it out of NAMES")
    return found


def collect(lines: dict[str, str], output: Path) -> None:
    """Bring a wheel of each into a folder, which is emptied of others."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        binary = ["download", "--only-binary=:all:", "--implementation=cp", f"--dest={folder}"]
        binary += [f"--platform={platform}" for platform in PLATFORMS]
        usual = lines.keys() - {DETECTRON2, *SOURCES}
        pip([lines[name] for name in usual], *binary, python=PYTHON)
        pip([lines[DETECTRON2]], *binary, python="3.10")  # the tag of one compiled file, which goes
        pip([lines[name] for name in SOURCES], "wheel", f"--wheel-dir={folder}")
        wheels = [slimmed(path) for path in sorted(folder.glob("*.whl"))]
        size = sum(path.stat().st_size for path in wheels)
        if size > MOST_BYTES:
            sys.exit(f"the wheels have {size / 1e6:.1f} MB, more than {MOST_BYTES / 1e6:.0f}")
        output.mkdir(parents=True, exist_ok=True)
        for old in output.glob("*.whl"):
            old.unlink()
        for path in wheels:
            shutil.copy(path, output)
    print(f"{len(wheels)} wheels, {size / 1e6:.1f} MB, in {output}")


def pip(lines: list[str], command: str, *options: str, python: str | None = None) -> None:
    """Run a command of pip on lines of requirements; end with its message where it fails."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(lines))
        file.flush()
        call = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", command, *options]
        call += ["--no-deps", "--require-hashes", "--requirement", file.name]
        call += [f"--python-version={python}"] if python else []
        if subprocess.run(call).returncode:
            sys.exit(f"pip {command} failed, see above")


def slimmed(wheel: Path) -> Path:
    """A wheel of detectron2 without its compiled file and the package `tools`, which would hide ours; any
    other as it is.
    """
    if not wheel.name.startswith("sal_detectron2-"):
        return wheel
    version = wheel.name.split("-")[1]
    slim = wheel.with_name(f"sal_detectron2-{version}-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as whole, zipfile.ZipFile(slim, "w", zipfile.ZIP_DEFLATED) as less:
        for entry in whole.infolist():
            if not _LEFT_OUT.match(entry.filename):
                less.writestr(entry, whole.read(entry), zipfile.ZIP_DEFLATED)
    return slim


def unpack(folder: Path, target: Path) -> list[str]:
    """Unzip those wheels of a folder that this Python does not have installed; returns their names."""
    unpacked = []
    for wheel in sorted(folder.glob("*.whl")):
        name = wheel.name.split("-")[0]
        if is_installed(name):
            continue
        with zipfile.ZipFile(wheel) as file:
            file.extractall(target)
        unpacked.append(name)
    return unpacked


def is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return name == "sal_detectron2" and _is_built()
    return True


def _is_built() -> bool:
    """Whether there is a detectron2 of another name, built from its source."""
    try:
        distribution("detectron2")
    except PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
