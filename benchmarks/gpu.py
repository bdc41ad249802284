"""Check and measure everything on one CUDA GPU, in one call of a few minutes, without network: `make gpu`.

python benchmarks/gpu.py [--only block,train] [--budget 360] [--wheels build/gpu-wheels] [--json FILE]

Each part is a process of its own with its own time, and what it does not need goes to those after it: a part
that fails, crashes or hangs stops no other. A part is skipped, with its reason, where a library is missing.
`--wheels` is the folder that `make gpu-wheels` has filled elsewhere: what the image lacks is unpacked from it
into a temporary folder. The exit code is 0 where all that ran passed, 1 where something did not, and 2 where
there is no CUDA device.

  tests     the tests marked `gpu`: training in every precision, resuming, evaluation, rewrites, exports
  block     each shape of Res2Net's block: the fused one and plain PyTorch, share of the memory's speed
  backbone  whole backbones in bf16 in every way to run them, with timm's and ResNet-50
  train     Mask R-CNN in our loop and in detectron2's: images a second, memory, waiting for data, and what
            the loops cost besides the network
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from gpu_wheels import unpack

ROOT = Path(__file__).resolve().parents[1]
NO_DEVICE = 2
SKIPPED = 3
"""Exit code of a part that cannot run here; it has written the reason as `skipped` into its JSON."""
KILLED_AFTER = 5.0
"""Seconds from a request to end until a part is killed."""
LIBRARIES = ("torch", "triton", "torchvision", "timm", "numpy", "opencv-python-headless", "onnxruntime")


class Part(NamedTuple):
    """What runs as a process of its own."""

    name: str
    command: tuple[str, ...]
    """Behind the Python interpreter; `{device}`, `{json}` and `{seconds}` are filled in."""
    seconds: float
    """Its share of a budget of `BUDGET`."""
    needs: tuple[str, ...] = ()
    """Modules without which it is skipped."""


def script(name: str) -> tuple[str, ...]:
    return (f"benchmarks/{name}.py", "--device={device}", "--json={json}", "--seconds={seconds}")


def marked_tests() -> list[str]:
    """Where tests marked `gpu` are: to look for them in all files would take longer than most of them."""
    files = (ROOT / "tests").rglob("*.py")
    found = {path for path in files if "mark.gpu" in path.read_text()}
    return sorted(
        {str((path.parent if path.name == "conftest.py" else path).relative_to(ROOT)) for path in found}
    )


PARTS = (  # by their worth: the first ones get their time first
    Part(
        "tests",
        (
            *("-m", "pytest", "-m", "gpu", "--junitxml={json}", "-q", "-p", "no:cacheprovider", "-n", "4"),
            *marked_tests(),
        ),
        120,
        ("pytest", "pytest_timeout", "xdist", "hypothesis", "pydantic"),
    ),
    Part("block", script("gpu_block"), 70, ("pydantic", "triton")),
    Part("backbone", script("gpu_backbone"), 85, ("pydantic", "timm")),
    Part(
        "train",
        (*script("train"), "--iterations=10", "--profile"),
        85,
        ("pydantic", "detectron2", "pycocotools", "hotcoco"),
    ),
)
BUDGET = sum(part.seconds for part in PARTS)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [part.name for part in PARTS]
    parser.add_argument("--only", type=parse_names, default=names, help=f"of {', '.join(names)} (all)")
    parser.add_argument("--budget", type=float, default=BUDGET, help=f"seconds in all ({BUDGET:g})")
    parser.add_argument("--wheels", type=Path, help="folder of `make gpu-wheels`")
    parser.add_argument("--json", type=Path, default=ROOT / "output/gpu.json", help="(output/gpu.json)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu tries the program")
    args = parser.parse_args(arguments)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        environment = python_path(args.wheels, folder / "site")
        machine = facts(environment, args.device)
        if args.device == "cuda" and not machine.get("cuda"):
            print(f"there is no CUDA device: {machine.get('error') or 'PyTorch sees none'}")
            return NO_DEVICE
        print(", ".join(f"{key} {value}" for key, value in machine.items()), flush=True)
        chosen = [part for part in PARTS if part.name in args.only]
        document = {"machine": machine, "date": time.strftime("%Y-%m-%d %H:%M:%S %z"), "parts": {}}
        scale = args.budget / sum(part.seconds for part in chosen)
        ends = time.monotonic()
        for part in chosen:
            ends += part.seconds * scale  # so what one leaves, the next one has
            print(f"\n=== {part.name} ===", flush=True)
            document["parts"][part.name] = run(
                part, ends - time.monotonic(), args.device, folder, environment
            )
            args.json.write_text(json.dumps(document, indent=1))  # an interrupt leaves what is done
    print("\n=== in short ===")
    for name, result in document["parts"].items():
        print(f"{name:10s} {result['status']:8s} {result['wall_s']:6.1f} s  {result.get('reason', '')}")
    print(f"all figures: {args.json}")
    return int(any(result["status"] not in ("passed", "skipped") for result in document["parts"].values()))


def parse_names(text: str) -> list[str]:
    """`block,train` -> their names."""
    names = [name for name in text.replace(",", " ").split() if name]
    known = [part.name for part in PARTS]
    if not names or not set(names) <= set(known):
        raise argparse.ArgumentTypeError(f"{text!r} is not of {', '.join(known)}")
    return names


def python_path(wheels: Path | None, folder: Path) -> dict[str, str]:
    """The environment of the parts: this checkout first, and what was missing here."""
    path = [str(ROOT)]
    if wheels is not None:
        if not any(wheels.glob("*.whl")):
            sys.exit(f"{wheels} has no wheels: fill it with `make gpu-wheels` where pip finds packages")
        names = unpack(wheels, folder)
        print(f"from {wheels}: {', '.join(names) or 'nothing, all is installed'}")
        path.append(str(folder))
    path += [one for one in os.environ.get("PYTHONPATH", "").split(os.pathsep) if one]
    usual = {"NO_ALBUMENTATIONS_UPDATE": "1", "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **usual, "PYTHONPATH": os.pathsep.join(path)}


def facts(environment: dict[str, str], device: str) -> dict[str, Any]:
    """What figures depend on. Asked in another process: this one keeps no memory of the GPU."""
    found: dict[str, Any] = {"python": platform.python_version(), "cores": os.cpu_count()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    code = (
        "import json, torch; there = torch.cuda.is_available(); "
        "one = torch.cuda.get_device_properties(0) if there else None; "
        "print(json.dumps({'cuda': torch.version.cuda, 'gpu': one.name, 'memory_gb': round(one.total_memory"
        " / 1e9, 1), 'multiprocessors': one.multi_processor_count} if there else {}))"
    )
    try:
        asked = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
        )
        if asked.returncode:
            return found | {"error": (asked.stderr.strip().splitlines() or ["PyTorch does not start"])[-1]}
        found |= json.loads(asked.stdout.splitlines()[-1])
        call = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        found["driver"] = subprocess.run(call, capture_output=True, text=True, timeout=30).stdout.strip()
    except subprocess.TimeoutExpired:
        found["error"] = "PyTorch does not answer"
    except OSError:
        pass  # there is no nvidia-smi
    return found


def run(part: Part, seconds: float, device: str, folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Run a part for at most so many seconds; returns its figures with `status` and `wall_s`."""
    if missing := absent(part.needs, environment):
        return shown({"status": "skipped", "wall_s": 0.0, "reason": f"{', '.join(missing)} not installed"})
    path = folder / f"{part.name}.json"
    values = {"device": device, "json": str(path), "seconds": f"{max(seconds - 10, 1):.0f}"}
    command = [sys.executable, *(text.format(**values) for text in part.command)]
    start = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
    late = False
    try:
        process.wait(timeout=max(seconds, 1))
    except subprocess.TimeoutExpired:
        late = True
    finally:
        end(process)
    result = read(path)
    result |= {"wall_s": round(time.monotonic() - start, 1), "exit_code": process.returncode}
    if late:
        result |= {"status": "late", "reason": f"ended after {seconds:.0f} s; what it had is kept"}
    elif process.returncode == SKIPPED:
        result |= {"status": "skipped", "reason": result.pop("skipped", "unknown")}
    elif process.returncode:
        result |= {"status": "failed", "reason": result.get("reason") or f"exit code {process.returncode}"}
    else:
        result["status"] = "passed"
    return shown(result)


def shown(result: dict[str, Any]) -> dict[str, Any]:
    print(f"-> {result['status']}, {result['wall_s']} s {result.get('reason', '')}".rstrip(), flush=True)
    return result


def absent(names: Sequence[str], environment: dict[str, str]) -> list[str]:
    """Which modules the parts will not find."""
    sys.path[:0] = added = environment["PYTHONPATH"].split(os.pathsep)
    try:
        importlib.invalidate_caches()
        return [name for name in names if importlib.util.find_spec(name) is None]
    finally:
        del sys.path[: len(added)]


def end(process: subprocess.Popen[bytes]) -> None:
    """End a part with all that it has started: first ask, then kill."""
    for number, patience in ((signal.SIGTERM, KILLED_AFTER), (signal.SIGKILL, KILLED_AFTER)):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=patience)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def read(path: Path) -> dict[str, Any]:
    """What a part has written: figures as JSON, or the tests' XML."""
    try:
        text = path.read_text()
        return from_pytest(text) if text.startswith("<?xml") else json.loads(text)
    except (OSError, ValueError, ElementTree.ParseError):
        return {}


def from_pytest(text: str) -> dict[str, Any]:
    """Counts, seconds and the messages of what failed or was skipped."""
    found: dict[str, Any] = {"passed": 0, "failed": {}, "skipped_tests": {}, "seconds": {}}
    for case in ElementTree.fromstring(text).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        found["seconds"][name] = float(case.get("time") or 0)
        bad = [one for kind in ("failure", "error") for one in case.iter(kind)]
        if bad:
            found["failed"][name] = (bad[0].get("message") or "")[:500]
        elif (skipped := case.find("skipped")) is not None:
            found["skipped_tests"][name] = skipped.get("message") or ""
        else:
            found["passed"] += 1
    count = len(found["failed"])
    found["reason"] = f"{found['passed']} passed, {count} failed, {len(found['skipped_tests'])} skipped"
    return found


if __name__ == "__main__":
    sys.exit(main())
