"""`Predictor`: what cannot be predicted first, then that every way to a prediction gives the same one."""

import json
import shutil

import numpy as np
import pytest
import torch
from exporting import assert_same
from PIL import Image
from running import assert_one_line
from tiny_tasks import classification, detection, saliency, segmentation, write_config, write_weights

from res2net_dense import Predictor, evaluate, export, load_exported, train
from res2net_dense.cli import main
from res2net_dense.data.images import list_images, read_image
from res2net_dense.errors import CheckpointError, ConfigError, DatasetError, ExportError

TASKS = [
    pytest.param((classification, ".onnx"), id="classification"),
    pytest.param((detection, ".onnx"), id="detection"),
    pytest.param((segmentation, ".torchscript"), id="segmentation"),
    pytest.param((saliency, ".torchscript"), id="saliency"),
    pytest.param((segmentation, ".onnx"), id="segmentation-onnx", marks=pytest.mark.slow),
    pytest.param((saliency, ".onnx"), id="saliency-onnx", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module", params=TASKS)
def made(request, draw_toy, tmp_path_factory):
    """A run folder of a task and its exported file."""
    kind, suffix = request.param
    folder = tmp_path_factory.mktemp("made")
    write_config(kind, draw_toy, folder)
    run = folder / "run"
    run.mkdir()
    write_weights(folder / "config.yaml", run / "model_best.safetensors", sure=True)
    shutil.copy(folder / "config.yaml", run)
    export(run, folder / f"model{suffix}", dynamic=True)
    return run, folder / f"model{suffix}"


@pytest.fixture
def run(made):
    return made[0]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Photos of odd sizes: one that a camera turned, a wide, a gray one."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)

    def blobs(height, width):
        small = rng.integers(0, 256, (height // 12 + 2, width // 12 + 2, 3), np.uint8)
        return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)

    turned = Image.Exif()
    turned[0x0112] = 6
    blobs(61, 83).save(folder / "a.jpg", exif=turned)
    blobs(45, 130).save(folder / "b.png")
    blobs(97, 64).convert("L").save(folder / "c.png")
    return [folder / name for name in ("a.jpg", "b.png", "c.png")]


def assert_equal(one, other):
    """Two predictions are equal to the bit."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def test_all_ways_to_a_prediction_agree(made, photos, tmp_path, capsys):
    run, file = made
    predictions = Predictor.load(run)(photos)
    for photo, prediction in zip(photos, predictions, strict=True):
        height, width = read_image(photo).shape[:2]
        for name in ("sem_seg", "saliency", "masks"):
            if name in prediction:
                assert prediction[name].shape[-2:] == (height, width)
    assert read_image(photos[0]).shape[:2] == (83, 61), "the photo is turned"
    assert_same(predictions, Predictor.load(file)(photos), tolerance=1e-3)

    for weights in (run, file):
        predictor, output = Predictor.load(weights), tmp_path / weights.name
        predictions = predictor(photos)
        given = ["--input", photos[0].parent, "--output", output]
        assert main([*map(str, ["predict", "--weights", weights, *given])]) == 0
        document = json.loads((output / "predictions.json").read_text())
        records = [
            record
            for number, prediction in enumerate(predictions, 1)
            for record in predictor.task.to_records(prediction, number)
        ]
        assert [{**one, "id": None} for one in document["annotations"]] == [
            {**one, "id": None} for one in json.loads(json.dumps(records))
        ]
        assert records
        drawn = predictor.draw(photos[1], predictions[1])
        overlay = output / predictor.task.overlay / "b.png"
        assert np.array_equal(np.asarray(Image.open(overlay)), np.asarray(drawn))


def test_paths_may_start_at_the_home_folder(made, photos, monkeypatch):
    run, file = made
    monkeypatch.setenv("HOME", str(run.parent))
    shutil.copy(photos[1], run.parent / "photo.png")
    prediction = Predictor.load("~/run")("~/photo.png")
    assert_equal(prediction, Predictor.load(run)(photos[1]))
    for loaded in (Predictor.load(f"~/{file.name}").model, load_exported(f"~/{file.name}")):
        assert loaded.path == file
    predictor = Predictor.load(run)
    assert predictor.draw("~/photo.png", prediction) == predictor.draw(photos[1], prediction)
    assert list_images("~/photo.p*") == list_images("~/photo.png") == [run.parent / "photo.png"]


@pytest.mark.parametrize("wrong", ["train.batch_size=2", [2]])
def test_one_override_instead_of_a_list_is_one_line(run, wrong):
    for call in (
        lambda: Predictor.load(run, overrides=wrong),
        lambda: train("quick/sod_res2net50", overrides=wrong),
        lambda: evaluate(run, overrides=wrong),
    ):
        with pytest.raises(ConfigError) as error:
            call()
        assert_one_line(error, f"overrides is {wrong!r}; pass a list such as ['train.batch_size=2']")


def test_an_image_may_come_in_any_form(run, photos):
    predictor = Predictor.load(run, device="cpu")
    expected = predictor(photos[0])
    pixels = read_image(photos[0])
    forms = [str(photos[0]), Image.open(photos[0]), pixels, torch.from_numpy(pixels).permute(2, 0, 1)]
    for form in forms:
        assert_equal(predictor(form), expected)
    together = predictor([*forms, photos[0]])  # a batch of several may round in another way
    assert_same([expected] * 5, together, tolerance=1e-5)
    assert len(predictor(torch.stack([forms[-1]] * 2))) == 2
    assert predictor([]) == []


def test_a_rewritten_network_predicts_the_same(run, photos):
    expected = Predictor.load(run)(photos)
    for backend in ("torch", "openvino", "auto"):
        assert_same(expected, Predictor.load(run).optimize(backend=backend)(photos), tolerance=1e-3)
    assert Predictor.load(run).optimize(torch.bfloat16)(photos[0]).keys() == expected[0].keys()


def test_what_is_not_an_image_is_one_line(run, tmp_path):
    predictor = Predictor.load(run)
    (tmp_path / "text.png").write_text("no image")
    for wrong, words in [
        (tmp_path / "none.png", "none.png"),
        (tmp_path / "text.png", "text.png"),
        (np.zeros((4, 4), np.uint8), "(H, W, 3) uint8"),
        (np.zeros((4, 4, 3)), "float64"),
        (torch.zeros(4, 4, 3, dtype=torch.uint8), "(3, H, W) uint8"),
        (Image.new("I;16", (4, 4)), "more than 8 bits"),
    ]:
        with pytest.raises(DatasetError) as error:
            predictor(wrong)
        assert_one_line(error, words)
    with pytest.raises(DatasetError, match="a list is not an image"):
        predictor([[0]])
    with pytest.raises(DatasetError, match="a NoneType is not an image"):
        predictor(None)


def test_a_device_that_is_not_there_is_one_line(run):
    with pytest.raises(ConfigError, match="unknown device 'gpu': use cpu, cuda or one GPU such as cuda:1"):
        Predictor.load(run, device="gpu")
    with pytest.raises(ConfigError) as error:
        Predictor.load(run, device="cuda:99")
    assert_one_line(error, "device")


def test_what_holds_no_model_is_one_line(made, tmp_path):
    run, file = made
    with pytest.raises(CheckpointError, match="is it a run folder"):
        Predictor.load(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        Predictor.load(tmp_path / "none.safetensors")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "theirs.pt")
    with pytest.raises(ConfigError, match="carries no configuration: give the one of its run"):
        Predictor.load(tmp_path / "theirs.pt")
    with pytest.raises(ConfigError, match="is an exported file: optimize the run"):
        Predictor.load(file).optimize()
    with pytest.raises(ExportError, match="does not exist"):
        Predictor.load(tmp_path / "none.onnx")
