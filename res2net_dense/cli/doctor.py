"""List what is installed, what is missing or does not fit together, and the command that fixes it.

Exit code 1 if the main job (training Mask R-CNN) cannot run here. With --models it instead measures every
network next to the published figures; exit code 1 if one differs.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import platform
import shutil
import sys
import warnings
from importlib import metadata
from pathlib import Path

from res2net_dense.cli._shared import add_overwrite_argument, check_output, only_with, say
from res2net_dense.errors import one_line

# detectron2 has no release of its own on the package index. This wheel is tagged for CPython 3.10 because of
# one compiled file that nothing here uses.
DETECTRON2_WHEEL = (
    "sal-detectron2==0.7.2 --hash=sha256:491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
)
DETECTRON2 = (  # one command after the other, each if the one before went well: the last one deletes
    "site=$(python -c 'import site; print(site.getsitepackages()[0])') && "
    f"echo '{DETECTRON2_WHEEL}' | pip install --no-deps --only-binary=:all: --python-version 3.10 "
    '--require-hashes -r /dev/stdin --target "$site" && rm -rf "$site/tools"  # a stray folder of that wheel'
)
DETECTION, SEGMENTATION, SALIENCY = (
    f"pip install 'res2net_dense[{extra}]'" for extra in ("detection", "segmentation", "saliency")
)
# (module, distribution, lowest version, needed by the main job, remedy)
LIBRARIES = [
    ("torch", "torch", "2.10", True, "pip install 'torch>=2.10' torchvision"),
    ("torchvision", "torchvision", "0", True, "pip install --force-reinstall torch torchvision"),
    ("numpy", "numpy", "1.26", True, "pip install 'numpy>=1.26'"),
    ("PIL", "pillow", "10.3", True, "pip install 'pillow>=10.3'"),
    ("pydantic", "pydantic", "2.7", True, "pip install 'pydantic>=2.7'"),
    ("yaml", "PyYAML", "6", True, "pip install PyYAML"),
    ("safetensors", "safetensors", "0.4", True, "pip install safetensors"),
    ("filelock", "filelock", "3.30", True, "pip install 'filelock>=3.30'"),
    ("pooch", "pooch", "1.8", True, "pip install 'pooch>=1.8'"),
    ("pycocotools", "pycocotools", "2.0", True, DETECTION),
    ("cv2", "opencv-python-headless", "4", True, DETECTION),
    ("albumentations", "albumentations", "2.0", True, DETECTION),
    ("defusedxml", "defusedxml", "0.7", True, DETECTION),
    ("fvcore", "fvcore", "0", True, DETECTION),
    ("detectron2", "detectron2", "0", True, DETECTRON2),
    # Its configs; it imports pkg_resources, which setuptools 82 removed.
    ("detectron2.model_zoo", "detectron2", "0", False, "pip install 'setuptools>=78.1.1,<82'"),
    ("hotcoco", "hotcoco", "1.3", False, DETECTION),
    ("segmentation_models_pytorch", "segmentation-models-pytorch", "0.6", False, SEGMENTATION),
    ("timm", "timm", "1.0.28", False, SEGMENTATION),
    ("matplotlib", "matplotlib", "3.8", False, SALIENCY),
    ("tensorboard", "tensorboard", "2", False, "pip install tensorboard"),
]  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", action="store_true", help="measure every network instead")
    what = "with --models: write the table there too"
    only_with(parser.add_argument("--json", type=Path, metavar="FILE", help=what), "--models")
    add_overwrite_argument(parser, outputs=["--json"])


def main(args: argparse.Namespace) -> int:
    check_output("--json", args.json)
    if args.models:
        from res2net_dense.cli._model_table import check_models

        return check_models(args.json, overwrite=args.overwrite)
    say(f"Python {platform.python_version()} at {sys.executable}, {platform.platform()}")
    broken, problems = False, []
    for module, distribution, lowest, needed, remedy in LIBRARIES:
        version, trouble = probe(module, distribution, lowest)
        distribution = module if module.startswith(f"{distribution}.") else distribution
        mark = "ok  " if not trouble else "FAIL" if needed else "miss"
        say(f"  {mark}  {distribution:28s} {version or '-':16s} {trouble}")
        if trouble:
            broken |= needed
            problems += [f"{'PROBLEM' if needed else 'optional'}: {distribution}: {trouble}", f"    {remedy}"]
    if not broken:
        describe_device()
        try:
            from res2net_dense.models.rcnn import build_rcnn

            build_rcnn(backbone={"name": "res2net50_26w_4s"}, num_classes=2)
            say("Mask R-CNN on res2net50_26w_4s: builds")
        except Exception as error:  # whatever it is, the user has to know it
            broken, reason = True, f"{type(error).__name__}: {one_line(error)}"
            remedy = f"{DETECTION.replace('install', 'install --upgrade')}  (in a new virtual environment)"
            problems += [f"PROBLEM: Mask R-CNN does not build: {reason}", f"    {remedy}"]
    say(f"disk: {shutil.disk_usage(Path.cwd()).free / 1e9:.0f} GB free here")
    say(*problems, "The main job cannot run." if broken else "The main job can run.")
    return int(broken)


def probe(module: str, distribution: str, lowest: str) -> tuple[str, str]:
    """Return the version of a library and what is wrong with it, empty if nothing."""
    version = ""
    for name in (f"sal-{distribution}", distribution):  # how detectron2's wheel is called
        with contextlib.suppress(metadata.PackageNotFoundError):
            version = metadata.version(name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = importlib.import_module(module)
    except Exception as error:  # an extension built for another torch raises anything
        return version, f"cannot be imported ({one_line(error)})" if version else "not installed"
    version = version or getattr(loaded, "__version__", "0")
    have, need = ([int(part) for part in text.split(".")[:3] if part.isdigit()] for text in (version, lowest))
    return version, f"older than {lowest}" if have < need else ""


def describe_device() -> None:
    """Print where a model would run."""
    import torch

    from res2net_dense.engine.distributed import device_names

    names = device_names()
    for name in names:
        say(f"device {name}")
    if not names:
        threads = torch.get_num_threads()
        say(f"no CUDA, XPU or MPS device; CPU with {threads} threads (torch {torch.__version__})")
