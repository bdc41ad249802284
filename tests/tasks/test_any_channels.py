"""Every task on images of four channels and 12 bits, and of one channel: trained, scored, exported."""

import json
import shutil

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from tiny_tasks import classification, detection, saliency, segmentation, write_config

from res2net_dense import Predictor, evaluate, export, train
from res2net_dense.config import load_config
from res2net_dense.data.images import read_image
from res2net_dense.errors import ConfigError, Res2NetDenseError
from res2net_dense.tasks import get_task

pytest.importorskip("detectron2")


def four_of_twelve_bits(rgb, path):
    """Three colours and how much they differ, from 0 to 4080."""
    fourth = np.ptp(rgb, axis=2, keepdims=True)
    values = np.concatenate([rgb, fourth], axis=2).astype(np.uint16) * 16
    tifffile.imwrite(path.with_suffix(".tif"), values, photometric="minisblack", planarconfig="contig")
    return path.with_suffix(".tif")


def grey(rgb, path):
    Image.fromarray(rgb).convert("L").save(path.with_suffix(".png"))
    return path.with_suffix(".png")


FORMS = {"four": (4, (0.0, 4095.0), four_of_twelve_bits), "grey": (1, None, grey)}


@pytest.fixture(scope="module", params=FORMS)
def form(request):
    return FORMS[request.param]


@pytest.fixture(scope="module", params=[detection, segmentation, saliency, classification])
def made(request, form, draw_toy, tmp_path_factory):
    """A run of a task on such images: the folder of its config, its result, and one of its images."""
    folder = tmp_path_factory.mktemp("made")
    channels, _, convert = form
    kept = []

    def draw(**toy):
        root = folder / toy["layout"]
        shutil.copytree(draw_toy(**toy), root)
        for path in sorted(root.rglob("*")):
            if path.suffix in (".png", ".jpg") and not {"masks", "SegmentationClass"} & set(path.parts):
                rgb = read_image(path)
                path.unlink()
                kept.append(convert(rgb, path))
        for path in root.glob("annotations/*.json"):
            content = json.loads(path.read_text())
            for image in content["images"]:
                image["file_name"] = image["file_name"].replace(".png", kept[0].suffix)
            path.write_text(json.dumps(content))
        return root

    write_config(request.param, draw, folder, channels=channels, photometric="light")
    config = folder / "config.yaml"
    result = train(config, overrides=["train.iterations=2", "train.save_every=1", "train.ema_decay=0.5"])
    return folder, result, kept[-1]


def test_what_was_measured_is_recorded_in_the_run(made, form):
    folder, result, _ = made
    channels, value_range, _ = form
    config = load_config(result.folder / "config.yaml")
    assert config.data.value_range == value_range
    assert len(config.model.pixel_mean) == len(config.model.pixel_std) == channels
    assert all(20 < mean < 200 for mean in config.model.pixel_mean[:3])
    given = load_config(folder / "config.yaml")
    assert given.model.pixel_mean is None
    with pytest.raises(ConfigError, match="pixel_mean and pixel_std are unknown"):
        get_task(given.task).build_model(given.model_copy(update={"model": config_model(config)}))


def config_model(config):
    return config.model.model_copy(update={"pixel_mean": None})


def test_samples_have_the_channels_and_the_exact_values(made, form):
    channels, value_range, _ = form
    config = load_config(made[1].folder / "config.yaml")
    sample = get_task(config.task).open_source(config, train=True).sample(0)
    assert sample["image"].shape[0] == channels
    if value_range is None:
        assert sample["image"].dtype == torch.uint8
    else:  # multiples of 16 of 4095, all of them whole numbers of these steps
        steps = sample["image"].double() * 4095 / 255 / 16
        assert (steps - steps.round()).abs().max() < 1e-4


def test_a_later_evaluation_equals_that_of_the_training(made):
    _, result, _ = made
    again = evaluate(result.folder)
    assert again.metrics == pytest.approx(result.metrics, abs=1e-9, nan_ok=True)


def test_files_arrays_and_tensors_give_one_prediction_and_it_is_drawn(made, form):
    _, result, image = made
    predictor = Predictor.load(result.folder)
    expected = predictor(image)
    values = tifffile.imread(image) if image.suffix == ".tif" else np.asarray(Image.open(image))[..., None]
    tensor = torch.from_numpy(values.astype(np.int32)).permute(2, 0, 1)
    for other in (values, tensor):
        found = predictor(other.to(torch.uint8) if form[0] == 1 and other is tensor else other)
        assert found.keys() == expected.keys()
        for key in expected:
            torch.testing.assert_close(found[key], expected[key])
    drawn = np.asarray(predictor.draw(image, expected, score=0.9))
    assert drawn.std() > 5


def test_other_channels_are_refused_with_the_file_and_a_remedy(made, form, tmp_path):
    channels = form[0]
    colours = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    Image.fromarray(colours).save(tmp_path / "rgb.png")
    with pytest.raises(Res2NetDenseError, match=rf"rgb\.png: .* 3 channels \(RGB\).*channels is {channels}"):
        Predictor.load(made[1].folder)(tmp_path / "rgb.png")


def test_the_exported_file_predicts_the_same(made, form, tmp_path):
    _, result, image = made
    exported = export(result.folder, tmp_path / "model.torchscript", dynamic=True)
    described = exported.description.input
    channels, value_range, _ = form
    assert described["channels"] == channels
    assert described["dtype"] == ("uint8" if value_range is None else "float32")
    assert described.get("value_range") == (value_range and list(value_range))
    assert exported.parity.passed
    one, other = (Predictor.load(path)(image) for path in (result.folder, tmp_path / "model.torchscript"))
    for key in ("logits", "saliency"):
        if key in one:
            torch.testing.assert_close(other[key], one[key], atol=1e-3, rtol=1e-3)
    if "sem_seg" in one:
        assert (one["sem_seg"] == other["sem_seg"]).float().mean() > 0.99
    assert other.keys() == one.keys()


def test_the_optimized_network_predicts_the_same(made):
    _, result, image = made
    expected, found = (
        Predictor.load(result.folder)(image), Predictor.load(result.folder).optimize()(image)
    )  # fmt: skip
    for key in ("logits", "saliency"):
        if key in expected:
            torch.testing.assert_close(found[key], expected[key], atol=1e-3, rtol=1e-3)
    assert found.keys() == expected.keys()


def test_a_run_goes_on(made):
    folder, result, _ = made
    settings = ["train.iterations=3", "train.save_every=1", "train.ema_decay=0.5"]
    longer = train(folder / "config.yaml", overrides=settings, resume=True)
    assert longer.folder == result.folder
    lines = (result.folder / "metrics.jsonl").read_text().splitlines()
    assert any(json.loads(line).get("iteration") == 3 for line in lines)
