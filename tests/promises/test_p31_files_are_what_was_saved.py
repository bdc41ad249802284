"""P31: every weight file is what was saved. A file of ours that has changed is refused wherever it is loaded,
and of a file without a hash one line says that it is unverified.
"""

import json
import logging
import shutil

import pytest
import safetensors.torch
import torch
from saved_runs import damages, small_config, small_run

from res2net_dense import Predictor, cli, create_backbone, evaluate, export, get_model, load_exported, train
from res2net_dense.errors import CheckpointError, ExportError
from res2net_dense.weight_files import open_weights

NAME = "test_se_res2next29"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a training."""
    return small_run(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """Returns an exported file of a format by its suffix; made once."""
    folder, made = tmp_path_factory.mktemp("exported"), {}

    def find(suffix):
        if suffix not in made:
            export(run, folder / f"model{suffix}")
            made[suffix] = folder / f"model{suffix}"
        return made[suffix]

    return find


def copied(path, folder):
    """A copy of a file with those that bear its name too."""
    for one in path.parent.glob(f"{path.stem}.*"):
        shutil.copy(one, folder)
    return folder / path.name


def said_unverified(caplog):
    return [one.getMessage() for one in caplog.records if "unverified" in one.getMessage()]


def assert_all_refused(path, load, broken, error=CheckpointError):
    """Each broken content of a file is refused in a line that names it."""
    whole = path.read_bytes()
    for content in broken:
        path.write_bytes(content)
        with pytest.raises(error, match=path.stem) as caught:
            load(path)
        assert "\n" not in str(caught.value)
    path.write_bytes(whole)
    load(path)


def test_the_best_model(run, tmp_path, caplog):
    """By itself: the hash is in the file."""
    path = shutil.copy(run / "model_best.safetensors", tmp_path / "shared.safetensors")
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    seal = content.index(b"res2net_dense_sha256")
    assert_all_refused(
        path,
        open_weights,
        [
            *damages(content, 50, 10),
            *damages(content, 50, 0, last=header),
            *damages(content, 50, 0, first=seal, last=seal + 102),
        ],
    )
    assert not said_unverified(caplog)


def test_every_bit_of_its_hash(run, tmp_path):
    """Also where it is stored, and what it is called: else a damaged file would be one without a hash."""
    path = shutil.copy(run / "model_best.safetensors", tmp_path / "shared.safetensors")
    content = path.read_bytes()
    seal = content.index(b'"res2net_dense_sha256"')
    broken = [
        content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]
        for place in range(seal - 2, seal + 104)
        for bit in (1, 32)
    ]
    assert_all_refused(path, open_weights, broken)


@pytest.mark.parametrize("place", ["checkpoints", "elsewhere"])
def test_a_checkpoint(run, tmp_path, place, caplog):
    """With the hash next to it every byte counts; without it, those of the records of torch's archive."""
    path = shutil.copy(run / "checkpoints/iter_0000008.pt", tmp_path / "iter_0000008.pt")
    content = path.read_bytes()
    broken = [*damages(content, 50, 10)]
    if place == "checkpoints":
        shutil.copy(run / "checkpoints/iter_0000008.pt.sha256", tmp_path)
    else:
        # The rest is padding, in which nothing is stored.
        tensor = max(torch.load(path)["model"].values(), key=torch.Tensor.numel).numpy().tobytes()
        first = content.index(tensor)
        broken = [*damages(content, 50, 0, first=first, last=first + len(tensor)), *damages(content, 0, 10)]
    assert_all_refused(path, open_weights, broken)
    assert not said_unverified(caplog)


WAYS = {
    "run folder": lambda run, config, best: Predictor.load(run),
    "--weights": lambda run, config, best: cli.main(["evaluate", "--debug", "--weights", str(best)]),
    "evaluate": lambda run, config, best: evaluate(best),
    "Predictor": lambda run, config, best: Predictor.load(best),
    "export": lambda run, config, best: export(best, run / "model.torchscript"),
    "backbone.weights": lambda run, config, best: train(
        config, overrides=[f"backbone.weights={best}", "runtime.output_dir=new"], dry_run=True
    ),
    "model.weights": lambda run, config, best: train(
        config, overrides=[f"model.weights={best}", "runtime.output_dir=new"], dry_run=True
    ),
    "model.weights of a run folder": lambda run, config, best: train(
        config, overrides=[f"model.weights={run}", "runtime.output_dir=new"], dry_run=True
    ),
    "average": lambda run, config, best: cli.main(
        ["average", "--debug", str(best), str(best), "--output", "mean.safetensors"]
    ),
    "predict": lambda run, config, best: cli.main(
        ["predict", "--debug", "--weights", str(best), "--input", "x.png", "--output", "out"]
    ),
    "create_backbone": lambda run, config, best: create_backbone(NAME, weights=best),
    "get_model": lambda run, config, best: get_model(NAME, best),
    "convert": lambda run, config, best: cli.main(["convert", "--debug", str(best)]),
    "classify": lambda run, config, best: cli.main(["classify", "--debug", "x.png", "--weights", str(best)]),
}


@pytest.mark.parametrize("way", WAYS)
def test_wherever_it_is_loaded(run, tmp_path, monkeypatch, way):
    monkeypatch.chdir(tmp_path)
    best = shutil.copytree(run, tmp_path / "run") / "model_best.safetensors"
    best.write_bytes(next(damages(best.read_bytes(), 1, 0, first=20_000)))
    shutil.copy(next((run.parent / "data").rglob("*.png")), "x.png")
    with pytest.raises(CheckpointError, match="model_best.*damaged.*copy or download it again"):
        WAYS[way](best.parent, small_config(tmp_path), best)


@pytest.mark.parametrize("kind", ["safetensors", "old torch", "torch without checksums", "torch"])
def test_files_of_others_are_read_and_said_to_be_unverified(tmp_path, caplog, kind):
    path, state = tmp_path / "w.bin", {"a": torch.ones(100)}
    if kind == "safetensors":
        path.write_bytes(safetensors.torch.save(state, {"format": "pt"}))
    elif kind == "old torch":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    else:
        torch.serialization.set_crc32_options(kind == "torch")
        try:
            torch.save(state, path)
        finally:
            torch.serialization.set_crc32_options(True)
    assert open_weights(path).state_dict["a"].equal(state["a"])
    lines = said_unverified(caplog)
    assert len(lines) == (kind != "torch")
    assert all(str(path) in line and "\n" not in line for line in lines)
    # A hash next to it verifies any file.
    caplog.clear()
    digest = open_weights(path).sha256
    caplog.clear()
    (tmp_path / "w.bin.sha256").write_text(f"{digest}  w.bin\n")
    open_weights(path)
    assert not said_unverified(caplog)
    assert_all_refused(path, open_weights, damages(path.read_bytes(), 20, 5))


def test_what_another_program_writes_of_ours(run, tmp_path, caplog):
    """It keeps the tensors and drops the hash, or keeps a hash that is not that of the file."""
    file = open_weights(run / "model_best.safetensors")
    path = tmp_path / "w.safetensors"
    path.write_bytes(safetensors.torch.save(file.state_dict, file.metadata))
    open_weights(path)
    assert len(said_unverified(caplog)) == 1
    with safetensors.safe_open(run / "model_best.safetensors", "pt") as other:
        metadata = other.metadata()
    path.write_bytes(safetensors.torch.save({"a": torch.ones(3)}, metadata))
    with pytest.raises(CheckpointError, match="damaged or changed after it was written"):
        open_weights(path)


FORMATS = [".torchscript", *(pytest.param(one, marks=pytest.mark.slow) for one in (".pt2", ".onnx", ".xml"))]


@pytest.mark.parametrize("suffix", FORMATS)
def test_exported_files(exported, tmp_path, suffix, caplog):
    path = copied(exported(suffix), tmp_path)
    assert len(json.loads((tmp_path / f"{path.name}.json").read_text())["sha256"]) == 1 + (suffix == ".xml")
    logging.getLogger().setLevel(logging.WARNING)
    assert_all_refused(path, load_exported, damages(path.read_bytes(), 50, 10), ExportError)
    for other in tmp_path.glob("model.bin"):
        whole = other.read_bytes()
        other.write_bytes(next(damages(whole, 1, 0)))
        with pytest.raises(ExportError, match=r"model\.bin is damaged"):
            load_exported(path)
        other.write_bytes(whole)
    assert not said_unverified(caplog)

    about = tmp_path / f"{path.name}.json"
    text = about.read_text()
    for broken in ("{", "[1]", '{"sha256": 3}', "[" * 99999):
        about.write_text(broken)
        with pytest.raises(ExportError, match="json is damaged"):
            load_exported(path)
    about.write_text(text)
    for one in sorted(tmp_path.glob("model.*")):  # renamed together; OpenVINO finds its weights by the name
        one.rename(tmp_path / one.name.replace("model", "other"))
    load_exported(path.with_stem("other"))
    (tmp_path / f"other{suffix}.json").unlink()
    load_exported(path.with_stem("other"))
    assert len(said_unverified(caplog)) == (suffix in (".onnx", ".xml"))
