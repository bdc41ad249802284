"""P37: names cannot forge messages: what moves the cursor, breaks lines or turns the writing is escaped."""

import json
import logging
import re
from pathlib import Path

import pytest
from tiny_tasks import detection, write_config

from res2net_dense import cli
from res2net_dense.cli import _PrintableFormatter
from res2net_dense.engine.distributed import print_rank0
from res2net_dense.evaluation.tables import align

EVIL = "x\x1b[2K\x1b[1A\nerror: forged\r\u202egnp\u2066<b>\x07\x9b2J"
FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e\u2066-\u2069]")


def assert_harmless(text):
    assert not FORBIDDEN.search(text), FORBIDDEN.findall(text)
    assert not [line for line in text.splitlines() if line.startswith("error: forged")]


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--config", EVIL],
        ["train", "--config", "quick/sod_res2net50", f"{EVIL}=1"],
        ["train", "--config", "quick/sod_res2net50", f"data.train.root={json.dumps(EVIL)}"],
        ["train", "--config", "quick/sod_res2net50", f"backbone.name={json.dumps(EVIL)}"],
        ["predict", "--weights", EVIL, "--input", "x", "--output", "y"],
        ["classify", EVIL, "--model", "test_res2net"],
        ["convert", EVIL],
        ["export", "--weights", EVIL, "--output", "x.onnx"],
        ["evaluate", "--weights", EVIL],
    ],
)
def test_arguments(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 1
    shown = capsys.readouterr()
    assert_harmless(shown.out + shown.err)
    assert "\\x1b" in shown.err


def test_log_messages():
    for name in ("res2net_dense", "py.warnings"):
        record = logging.LogRecord(name, logging.WARNING, "", 1, "%s: left out", (EVIL,), None)
        shown = _PrintableFormatter("%(levelname)s: %(message)s").format(record)
        assert_harmless(shown)
        assert "\n" not in shown


def test_tables_and_printed_text(capsys):
    table = align([["class", "AP"], [EVIL, "1.0"]])
    assert len(table.splitlines()) == 2
    assert_harmless(table)
    print_rank0(f"first\nsecond {EVIL[:6]}")
    shown = capsys.readouterr().out
    assert shown.startswith("first\nsecond x\\x1b")


@pytest.fixture
def evil_run(draw_toy, tmp_path):
    """A configuration of detection whose class and file names are evil, and its weights."""
    path = write_config(detection, draw_toy, tmp_path)
    text = path.read_text()
    folder = next(part.split()[0].rstrip(",}") for part in text.split("annotations: ")[1:])
    document = json.loads(Path(folder).read_text())
    document["categories"][0]["name"] = EVIL
    (tmp_path / "evil.json").write_text(json.dumps(document))
    path.write_text(text.replace(folder, str(tmp_path / "evil.json")))
    return path


def test_class_names_of_a_data_set(evil_run, capsys, tmp_path, tmp_path_factory):
    html = tmp_path_factory.mktemp("page") / "page.html"
    code = cli.main(["check", "--config", str(evil_run), "--html", str(html)])
    assert code in (0, 1), capsys.readouterr()
    assert html.exists(), capsys.readouterr()
    cli.main(["train", "--config", str(evil_run), "data.val=null", "--output-dir", str(tmp_path / "run")])
    shown = capsys.readouterr()
    assert_harmless(shown.out + shown.err)
    assert "\\x1b[2K" in shown.out
    page = html.read_text()
    assert_harmless(page)
    assert "<b>" not in page.replace("<b>", "", page.count("<b></b>"))
    for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines():
        json.loads(line)
