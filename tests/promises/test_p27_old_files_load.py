"""P27: old files load for ever. Each released version left checkpoints, a run folder, configurations and an
exported file in `tests/legacy`, with the numbers that they gave (`make.py` writes them) and still give.
"""

import json
import lzma
import shutil
from pathlib import Path

import pytest
import torch
from saved_runs import LEGACY, state_of
from torch import nn

from res2net_dense import Predictor, evaluate, export, load_exported, train
from res2net_dense.config import config_to_dict, load, load_config, parse_config
from res2net_dense.data.images import read_sample
from res2net_dense.deploy.description import Description
from res2net_dense.engine.checkpointer import Checkpointer, open_checkpoint, restore
from res2net_dense.engine.optim import Ema, build_optimizer
from res2net_dense.errors import CheckpointError, ConfigError, ExportError
from res2net_dense.weight_files import formats, open_weights, save_weights

VERSIONS = sorted(path.name for path in LEGACY.iterdir() if (path / "expected.json").is_file())
IMAGE = "data/val/down/1.png"


@pytest.fixture(params=VERSIONS)
def old(request, tmp_path, monkeypatch):
    """What was expected of the files of a version, which are copied to the working directory."""
    shutil.copytree(LEGACY / request.param, tmp_path, dirs_exist_ok=True)
    packed = tmp_path / "model.torchscript.xz"
    packed.with_suffix("").write_bytes(lzma.decompress(packed.read_bytes()))
    monkeypatch.chdir(tmp_path)
    return json.loads((tmp_path / "expected.json").read_text())


def close(one, other):
    torch.testing.assert_close(
        torch.as_tensor(one), torch.as_tensor(other), rtol=1e-3, atol=1e-4, equal_nan=True
    )


def same_scores(one, other):
    assert one.keys() >= other.keys()
    for name, value in other.items():
        close(one[name], value)


def test_they_are_small():
    for version in VERSIONS:
        files = [LEGACY / "make.py", *(path for path in (LEGACY / version).rglob("*") if path.is_file())]
        assert sum(path.stat().st_size for path in files) < 240_000


def test_a_checkpoint_with_all_parts(old, tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    scaler = torch.amp.GradScaler("cpu")
    state = state_of(model, ema=Ema(model), scaler=scaler)
    state.optimizer = build_optimizer(model, name="adamw", lr=0.1)
    restore(Checkpointer(tmp_path).open_latest().content, state)
    assert (state.iteration, state.ema.updates, scaler.get_scale()) == (3, 3, 256.0)
    assert state.best == {"metric": "mIoU", "value": 12.5, "iteration": 2}
    close(state.ema.module.eval()(torch.ones(1, 3, 4, 4)).flatten(), old["average"])
    model(torch.rand(2, 3, 8, 8)).sum().backward()
    state.optimizer.step()  # its moments fit


def test_a_run_is_resumed(old):
    results = train("run/config.yaml", resume=True).metrics
    same_scores(results, old["results"])
    log = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [entry["iteration"] for entry in log] == [entry["iteration"] for entry in old["log"]]
    for now, then in zip(log[:-1], old["log"][:-1], strict=True):
        assert now["image_ids"] == then["image_ids"]
        close([now["lr"], now["total_loss"]], [then["lr"], then["total_loss"]])
    assert open_checkpoint("run/checkpoints/iter_0000008.pt").content["iteration"] == 8


def test_a_run_is_evaluated_used_and_exported(old):
    same_scores(evaluate("run").metrics, old["results"])
    same_scores(evaluate("run/model_best.safetensors", output_dir="again").metrics, old["results"])
    evaluate("run/checkpoints/iter_0000004.pt", output_dir="again")
    close(Predictor.load("run")(IMAGE)["logits"], old["logits"])
    export("run", "new.torchscript")
    close(Predictor.load("new.torchscript")(IMAGE)["logits"], old["logits"])


@pytest.mark.filterwarnings("ignore:.*jit.*:FutureWarning", "ignore:.*jit.*:DeprecationWarning")
def test_an_exported_file(old):
    image = read_sample(IMAGE, 0)["image"][None]
    close(load_exported("model.torchscript").run(image)["logits"].flatten(), old["exported"])
    close(Predictor.load("model.torchscript")(IMAGE)["logits"], old["logits"])
    same_scores(evaluate("model.torchscript", output_dir="again").metrics, old["results"])


@pytest.mark.parametrize("task", ["classification", "detection", "saliency", "semantic_segmentation"])
def test_configurations(old, task):
    config = load_config(f"{task}.yaml")
    assert config.task == task
    assert parse_config(config_to_dict(config)) == config


def test_a_format_is_brought_up_to_date_step_by_step(tmp_path, monkeypatch):
    """As if formats 2 and 3 had other names for two entries."""
    shutil.copytree(LEGACY / "0.1.0/checkpoints", tmp_path / "checkpoints")
    monkeypatch.setattr(formats, "FORMAT", 3)
    steps = {
        1: lambda old: {**{key: value for key, value in old.items() if key != "best"}, "top": old["best"]},
        2: lambda old: {**old, "best": old["top"] | {"value": 99.0}},
    }
    monkeypatch.setattr(formats, "MIGRATIONS", steps)
    content = Checkpointer(tmp_path).open_latest().content
    assert (content["format"], content["best"]["value"]) == (3, 99.0)


def test_every_format_has_its_way():
    assert sorted(formats.MIGRATIONS) == list(range(1, formats.FORMAT))


def test_newer_files_are_refused(tmp_path, monkeypatch):
    content = torch.load(LEGACY / "0.1.0/checkpoints/iter_0000003.pt")
    torch.save({**content, "format": formats.FORMAT + 1, "version": "9.1"}, tmp_path / "new.pt")
    monkeypatch.setattr("res2net_dense.weight_files.models.FORMAT", formats.FORMAT + 1)
    save_weights(tmp_path / "new.safetensors", {"a": torch.ones(1)}, {"version": "9.1"})
    for name in ("new.pt", "new.safetensors"):
        with pytest.raises(CheckpointError, match=rf"{name} was written by version 9\.1.*: upgrade"):
            open_weights(tmp_path / name)
    text = json.dumps(
        {"task": "x", "arch": "x", "backbone": "x", "outputs": [], "revision": 9, "version": "9.1"}
    )
    with pytest.raises(ExportError, match=r"was exported by version 9\.1.*: upgrade"):
        Description.from_json(text)


def test_settings_keep_their_old_names(monkeypatch):
    monkeypatch.setattr(load, "RENAMED", {"train.average": "train.ema_decay", "speed": "train.optimizer.lr"})
    settings = config_to_dict(load_config(LEGACY / "0.1.0/classification.yaml"))
    settings["train"].pop("ema_decay", None)
    del settings["train"]["optimizer"]["lr"]
    before = json.dumps(old := {**settings, "speed": 0.5, "train": settings["train"] | {"average": 0.9}})
    config = parse_config(old)
    assert (config.train.ema_decay, config.train.optimizer.lr) == (0.9, 0.5)
    assert json.dumps(old) == before
    with pytest.raises(ConfigError, match=r"unknown key 'train\.average'"):
        parse_config(old, overrides=["train.ema_decay=0.8"])
