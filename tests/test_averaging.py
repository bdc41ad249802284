"""The mean of weight files: what is refused first, then PyTorch's own average, and the file in use."""

import json
import shutil

import pytest
import torch
from running import assert_one_line
from torch.optim.swa_utils import AveragedModel

from res2net_dense import Predictor, cli
from res2net_dense.averaging import average
from res2net_dense.errors import CheckpointError, ConfigError
from res2net_dense.trained import open_job
from res2net_dense.weight_files import open_weights, save_weights

TASK = "classification"


@pytest.fixture(scope="module")
def files(trained):
    """Two checkpoints of a run."""
    return sorted((trained(TASK) / "checkpoints").glob("iter_*.pt"))


def changed(file, folder, *, config=None, tensors=None):
    """A copy of a file with changes to its configuration and tensors, as a safetensors file."""
    opened = open_weights(file)
    content = {**opened.config, **(config or {})}
    path = folder / "changed.safetensors"
    about = {"metadata": json.dumps({"config": content})} if content else {}
    save_weights(path, {**opened.state_dict, **(tensors or {})}, about)
    return path


def test_one_file_or_one_twice_is_no_mean(files, tmp_path):
    again = files[0].parent / f"../checkpoints/{files[0].name}"
    for given in (files[:1], [files[0], files[0]], [files[0], again]):
        with pytest.raises(ConfigError):
            average(given, tmp_path / "mean.safetensors")
    with pytest.raises(ConfigError, match="must end in .safetensors"):
        average(files, tmp_path / "mean.pt")
    assert not list(tmp_path.iterdir())


def test_a_file_of_the_mean_is_not_written_over(trained, tmp_path):
    run = shutil.copytree(trained(TASK), tmp_path / "run")
    best = run / "model_best.safetensors"
    before = best.read_bytes()
    with pytest.raises(ConfigError, match="which is read"):
        average([run, next((run / "checkpoints").glob("*.pt"))], best, overwrite=True)
    assert best.read_bytes() == before


def test_other_networks_classes_and_shapes_are_refused(files, tmp_path):
    config = open_weights(files[0]).config
    names = config["data"]["class_names"]
    tensor = "backbone.fc.weight"
    cases = [
        ({"backbone": {**config["backbone"], "stride_in_1x1": True}}, {}, ["backbone.stride_in_1x1=True"]),
        ({"data": {**config["data"], "class_names": [*names[1:], names[0]]}}, {}, ["classes", names[1]]),
        ({}, {tensor: torch.zeros(3, 3)}, [tensor, "(3, 3)"]),
        ({}, {"more": torch.zeros(1)}, ["1 unexpected: more"]),
        ({}, {tensor: torch.full_like(open_weights(files[0]).state_dict[tensor], torch.nan)}, ["not finite"]),
    ]
    for settings, tensors, words in cases:
        other = changed(files[1], tmp_path, config=settings, tensors=tensors)
        with pytest.raises(CheckpointError) as error:
            average([files[0], other], tmp_path / "mean.safetensors")
        assert_one_line(error, str(other), *words)
    save_weights(tmp_path / "bare.safetensors", open_weights(files[0]).state_dict, {})
    with pytest.raises(CheckpointError, match="carries no configuration"):
        average([files[0], tmp_path / "bare.safetensors"], tmp_path / "mean.safetensors")
    assert not (tmp_path / "mean.safetensors").exists()


def test_the_mean_is_that_of_averaged_model(files, tmp_path):
    average(files, tmp_path / "mean.safetensors")
    models = []
    for file in files:
        job, _ = open_job(None, file)
        models.append(job.model(job.with_classes()))
    reference = AveragedModel(models[0], use_buffers=True)
    for model in models:
        reference.update_parameters(model)
    expected, found = reference.module.state_dict(), open_weights(tmp_path / "mean.safetensors").state_dict
    assert found.keys() == expected.keys()
    for name, value in found.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-7)
        else:
            assert torch.equal(value, models[-1].state_dict()[name])
    assert not torch.equal(found["backbone.fc.weight"], models[0].state_dict()["backbone.fc.weight"])


def test_the_file_is_used_as_any_other(files, trained, tmp_path, capsys):
    mean = tmp_path / "mean.safetensors"
    assert cli.main(["average", str(trained(TASK)), str(files[0]), "--output", str(mean)]) == 0
    best = trained(TASK) / "model_best.safetensors"
    assert f"{mean}: the mean of {best}, {files[0]}" in capsys.readouterr().out
    assert list(Predictor.load(mean).class_names) == open_weights(mean).config["data"]["class_names"]
    assert cli.main(["average", str(best), "--output", str(mean)]) == 1
    assert "two weight files" in capsys.readouterr().err


def test_nothing_of_others_is_replaced(files, tmp_path):
    mean = tmp_path / "mean.safetensors"
    mean.write_text("mine")
    with pytest.raises(ConfigError, match="--overwrite"):
        average(files, mean)
    assert mean.read_text() == "mine"
    average(files, mean, overwrite=True)
    average(files, mean)  # which this function wrote
    own = shutil.copy(files[0], tmp_path / "own.safetensors")
    with pytest.raises(ConfigError):
        average([own, files[1]], own, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".res2net")) == [
        "mean.safetensors", "own.safetensors",
    ]  # fmt: skip
