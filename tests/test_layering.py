"""Who may import whom, read from the source: `docs/architecture.md` has the same table in words."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "res2net_dense"

# These are open to everybody and import nothing but each other.
OPEN = {
    "types", "errors", "findings", "version", "files", "opening", "outputs", "journal", "weight_files",
    "download", "palette", "sections", "limits", "network_options", "workers",
}  # fmt: skip
ALLOWED = {
    "__init__": {"backbones", "deploy", "exporting", "hub", "jobs", "predictor", "trained"},  # when asked for
    "__main__": {"cli"},
    "cli": None,  # everything
    "toy": set(),
    "hub": {"backbones", "convert", "data", "engine"},
    "kernels": set(),  # programs on tensors, which know no network
    "backbones": {"convert", "kernels"},  # `create_backbone` calls convert for weights, inside the function
    "convert": {"backbones"},
    "integrations": {"backbones", "convert"},
    "models": {"integrations", "backbones", "convert"},
    "data": set(),
    "evaluation": set(),
    "engine": set(),
    "report": set(),
    "config": {"data"},  # the parts that its layouts read
    "deploy": {"models", "backbones", "kernels"},
    "tasks": {"models", "backbones", "data", "evaluation", "config", "engine", "convert", "report"},
    "trained": {"tasks", "deploy", "config", "convert", "engine"},
    "jobs": {"trained", "tasks", "engine", "config"},
    "averaging": {"trained", "tasks", "config"},
    "exporting": {"trained", "tasks", "deploy", "models", "config", "data"},
    "predictor": {"trained", "deploy", "config", "data", "engine"},
}

DETECTORS = {f"models/{name}.py" for name in ("detector", "rcnn", "retinanet", "detection_graph")}
OPTIONAL_LIBRARIES = {
    "detectron2": {"integrations/detectron2.py", *DETECTORS},
    "segmentation_models_pytorch": {"integrations/smp.py", "models/segmentation.py"},
    "timm": {"integrations/timm.py", "cli/_benchmark.py"},
    "sahi": {"integrations/sahi.py"},
    "albumentations": {"data/transforms.py"},
    "pycocotools": {"data/layouts/coco_masks.py", "evaluation/coco.py"},
    "defusedxml": {"data/layouts/voc_boxes.py"},
    "cv2": {
        "report/outlines.py",
        "evaluation/saliency_measures.py",
        "toy/layouts.py",
        "toy/shapes.py",
        "data/bands.py",
    },
    "tifffile": {"data/bands.py", "data/regions.py"},
    "matplotlib": {
        "report/figures.py",
        "report/saliency_curves.py",
        "report/lr_curve.py",
        "report/training_curves.py",
    },
    "onnx": {"deploy/onnx_format.py", "deploy/quantize.py"},
    "onnxscript": {"deploy/onnx_format.py"},
    "onnxruntime": {"deploy/onnx_format.py", "deploy/quantize.py"},
    "openvino": {"deploy/openvino_format.py"},
    "hotcoco": {"evaluation/coco.py"},
    "triton": {"kernels/programs.py", "kernels/launch.py"},
    "jinja2": {"report/findings.py"},
}

MODULES = sorted(PACKAGE.rglob("*.py"))


def imports(path):
    """Every imported module of a file, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def package_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_packages_import_only_what_they_may(path):
    own = package_of(path)
    for name in imports(path):
        if not name.startswith("res2net_dense."):
            continue
        other = name.split(".")[1]
        if other in OPEN | {own} or not ((PACKAGE / other).is_dir() or (PACKAGE / f"{other}.py").is_file()):
            continue
        assert own not in OPEN, f"{path} is open to everybody and imports {name}"
        assert ALLOWED[own] is None or other in ALLOWED[own], (
            f"{path} imports {name}, but {own} may import only {sorted(ALLOWED[own])}"
        )


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_optional_libraries_stay_in_their_files(path):
    for name in imports(path):
        library = name.split(".")[0]
        if library in OPTIONAL_LIBRARIES:
            assert str(path.relative_to(PACKAGE)) in OPTIONAL_LIBRARIES[library], f"{path} imports {name}"


def test_nothing_outside_tasks_asks_which_task_it_is():
    names = "detection|classification|semantic_segmentation|saliency"
    for path in MODULES:
        found = re.findall(rf"[!=]= *[\"']({names})[\"']|\btask *[!=]= *[\"']", path.read_text())
        assert package_of(path) == "tasks" or not found, path


def test_every_package_is_in_the_table():
    assert {package_of(path) for path in MODULES} == set(ALLOWED) | {
        o for o in OPEN if (PACKAGE / f"{o}.py").exists() or (PACKAGE / o).is_dir()
    }


def test_importing_the_package_needs_no_optional_library():
    libraries = sorted(set(OPTIONAL_LIBRARIES) - {"defusedxml"})  # which torchvision imports where it can
    code = f"import sys, res2net_dense; print(*[m for m in {libraries} if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == []


def test_a_configuration_is_read_without_torch():
    code = "import sys, res2net_dense.config; print('torch' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["False"]


READING = PACKAGE / "weight_files" / "reading.py"


def test_nothing_unsafe_is_read():
    """No pickle, no `weights_only=False`, no eval in the package and its tools, but for one function."""
    for path in [*MODULES, *(ROOT / "tools").glob("*.py"), *(ROOT / "datasets").glob("*.py")]:
        assert (list(unsafe_calls(path)) == []) == (path != READING), path
    assert {function for function, _ in unsafe_calls(READING)} == {"_unpickle_trusted"}


def test_the_one_unsafe_function_is_called_with_trust_alone():
    text = READING.read_text()
    lines = [line.strip() for line in text.splitlines()]
    calls = [index for index, line in enumerate(lines) if "_unpickle_trusted(" in line and "def " not in line]
    assert [lines[index - 1] for index in calls] == ["if trusted:"]
    assert not any("_unpickle_trusted" in path.read_text() for path in MODULES if path != READING)


def unsafe_calls(path):
    """(function, line) of every call that can run what a file says."""
    tree = ast.parse(path.read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    unsafe = {"pickle.load", "pickle.loads", "pickle.Unpickler", "eval", "exec", "yaml.load", "os.system"}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        weights_only = [ast.unparse(k.value) for k in node.keywords if k.arg == "weights_only"]
        if ast.unparse(node.func) in unsafe or weights_only not in ([], ["True"]):
            inside = [f.name for f in functions if f.lineno <= node.lineno <= (f.end_lineno or 0)]
            yield (inside[-1] if inside else ""), node.lineno
