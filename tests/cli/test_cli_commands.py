"""The command: every subcommand answers `--help` without PyTorch, and the scripts of a checkout call it."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from res2net_dense import cli
from res2net_dense.cli import convert
from res2net_dense.cli._shared import EXPORT_FORMATS

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = {
    "tools/train_net.py": "train",
    "tools/predict.py": "predict",
    "tools/export.py": "export",
    "tools/convert_checkpoint.py": "convert",
    "tools/evaluate_saliency.py": "score-saliency",
    "tools/classify.py": "classify",
    "tools/doctor.py": "doctor",
    "tools/benchmark.py": "benchmark",
    "tools/check_dataset.py": "check",
    "datasets/make_toy.py": "toy",
    "datasets/split_coco.py": "split",
    "datasets/prepare_duts.py": "prepare-duts",
    "datasets/prepare_voc_aug.py": "prepare-voc-aug",
}


def run(*command, cwd=ROOT):
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, capture_output=True, text=True, timeout=120
    )


def test_the_table_has_all_modules():
    modules = {path.stem for path in Path(cli.__file__).parent.glob("[!_]*.py")}
    assert {name.replace("-", "_") for name in cli.COMMANDS} == modules


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main([name, "--help"])
    text = capsys.readouterr().out
    assert text.startswith(f"usage: res2net-dense {name} ")
    assert "--debug" in text
    assert cli.load(name).__doc__.splitlines()[0] in text


def test_help_imports_no_library():
    """In one process, which is what takes time; the modules of all subcommands are imported in it."""
    code = (
        "import json, sys\n"
        "from res2net_dense import cli\n"
        "for name in cli.COMMANDS: cli.parser_of(name, cli.load(name)).format_help()\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    process = run("-c", code)
    assert process.returncode == 0, process.stderr
    heavy = {"torch", "torchvision", "numpy", "cv2", "PIL", "pydantic", "yaml", "tqdm", "scipy", "matplotlib"}
    assert not heavy & set(json.loads(process.stdout))


def test_only_the_module_that_was_asked_for_is_imported():
    code = (
        "import sys\n"
        "from res2net_dense import cli\n"
        "try: cli.main(['convert', '--help'])\n"
        "except SystemExit: pass\n"
        "print(*(name for name in sys.modules if name.startswith('res2net_dense.cli.') and '._' not in name))"
    )
    assert run("-c", code).stdout.splitlines()[-1] == "res2net_dense.cli.convert"


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_the_list_of_commands(arguments, capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(arguments)
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in cli.COMMANDS)


def test_an_unknown_command_is_named_with_the_nearest(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["trian", "--config", "x"])
    assert "unknown command 'trian'; did you mean train?" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["res2net_dense", "res2net_dense.cli"])
def test_as_a_module(module):
    process = run("-m", module, "--version")
    assert process.returncode == 0
    assert process.stdout.startswith("res2net-dense ")


@pytest.mark.parametrize(("arguments", "code"), [("--help", 0), ("convert a.pth", cli.SIGPIPE_CODE)])
@pytest.mark.parametrize("size", [1, 100_000])
def test_a_reader_that_ends_early_sees_no_traceback(arguments, code, size):
    """`res2net-dense convert a.pth | head -1`, where the reader has ended before the first word."""
    program = (
        "import sys\n"
        "from res2net_dense import cli\n"
        "from res2net_dense.cli import convert\n"
        f"convert.main = lambda args: print('x' * {size}) or 0\n"
        f"sys.exit(cli.main({arguments.split()}))"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, **pipes)
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == code


def test_user_errors_are_one_line_and_debug_shows_where(capsys, tmp_path):
    line = ["doctor", "--models", "--json", str(tmp_path / "none" / "x.json")]
    assert cli.main(line) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    with pytest.raises(cli.Res2NetDenseError, match="there is no folder"):
        cli.main([*line, "--debug"])


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (FileNotFoundError(2, "No such file", "run/a.txt"), "run/a.txt: No such file"),
        (FileNotFoundError(2, "No such file", b"run/a.txt"), "run/a.txt: No such file"),
        (ModuleNotFoundError("No module named 'x'", name="x"),
         "x is not installed; `res2net-dense doctor` says how to get it"),
        (MemoryError(), "not enough memory; lower the number of images at a time, or their size"),
        (RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB"),
         "not enough memory; lower the number of images at a time, or their size"),
    ],
)  # fmt: skip
def test_what_a_user_can_help_is_one_line(monkeypatch, capsys, error, line):
    def fail(args):
        raise error

    monkeypatch.setattr(convert, "main", fail)
    assert cli.main(["convert", "net.pth"]) == 1
    assert capsys.readouterr().err == f"error: {line}\n"


def test_arguments_may_start_at_the_home_folder(monkeypatch, tmp_path):
    found = []
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(convert, "main", lambda args: found.append(args) or 0)
    assert cli.main(["convert", "~/net.pth", "net~.pth", "--report=~/net.json", "--prefix=~"]) == 0
    (args,) = found
    assert args.source == tmp_path / "net.pth"
    assert args.destination == Path("net~.pth")
    assert args.report == tmp_path / "net.json"


def test_a_fault_of_ours_shows_its_place(monkeypatch):
    monkeypatch.setattr(convert, "main", lambda args: {}["key"])
    with pytest.raises(KeyError):
        cli.main(["convert", "net.pth"])


@pytest.mark.parametrize(("script", "name"), SCRIPTS.items())
def test_scripts_are_thin_and_reach_the_command(script, name):
    source = (ROOT / script).read_text()
    assert len(source.splitlines()) <= 15
    (call,) = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "main"
    ]
    assert ast.unparse(call) == f"main(['{name}', *sys.argv[1:]])"


def test_all_scripts_are_listed():
    scripts = [*ROOT.glob("tools/*.py"), *ROOT.glob("datasets/*.py")]
    assert {str(path.relative_to(ROOT)) for path in scripts} == set(SCRIPTS)


def test_a_script_from_another_folder(tmp_path):
    process = run(ROOT / "tools/train_net.py", "--help", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("usage: res2net-dense train ")


def test_names_in_help_are_those_of_the_libraries():
    """They are written a second time, so that `--help` need not import what has them."""
    from res2net_dense.convert import list_dialects
    from res2net_dense.deploy.export import FORMATS

    assert list(convert.DIALECTS) == list_dialects()
    assert set(EXPORT_FORMATS) == set(FORMATS)


def test_the_public_names_are_found_when_asked_for():
    code = (
        "import sys, res2net_dense\n"
        "assert 'torch' not in sys.modules\n"
        "for name in res2net_dense.__all__: getattr(res2net_dense, name)\n"
        "assert set(res2net_dense.__all__) <= set(dir(res2net_dense))\n"
        "assert 'torch' in sys.modules\n"
        "res2net_dense.no_such_name"
    )
    process = run("-c", code)
    assert process.stderr.splitlines()[-1] == (
        "AttributeError: module 'res2net_dense' has no attribute 'no_such_name'"
    )
