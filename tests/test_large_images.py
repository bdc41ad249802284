"""Images in tiles: the same as without where a tile holds them, and one way for all models and inputs."""

import itertools
import json
import shutil

import numpy as np
import pytest
import tifffile
import torch
from exporting import assert_same
from PIL import Image
from tiny_tasks import detection, saliency, segmentation, write_config, write_weights

from res2net_dense import Predictor, evaluate, export, train
from res2net_dense.cli import main
from res2net_dense.config import load_config
from res2net_dense.data import bands, regions
from res2net_dense.data.tiles import visible_shares
from res2net_dense.errors import ConfigError, DatasetError
from res2net_dense.tasks import get_task

TASKS = [detection, segmentation, saliency]
TILES = "data.tiles={size: 80, overlap: 24}"


@pytest.fixture(scope="module", params=TASKS)
def run(request, draw_toy, tmp_path_factory):
    """The run folder of a tiny model of each task."""
    folder = tmp_path_factory.mktemp(request.param)
    write_config(request.param, draw_toy, folder)
    (folder / "run").mkdir()
    write_weights(folder / "config.yaml", folder / "run/model_best.safetensors", sure=True)
    shutil.copy(folder / "config.yaml", folder / "run")
    return folder / "run"


def blobs(height, width, seed=0):
    small = np.random.default_rng(seed).integers(0, 256, (height // 12 + 2, width // 12 + 2, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def assert_nearly_same(one, other):
    """As many detections, and maps that differ in a few pixels, by the rounding of another runtime."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.shape == other[name].shape, name
        if value.is_floating_point():
            assert torch.allclose(value, other[name], atol=1e-3, rtol=1e-5), name
        else:
            assert (value != other[name]).float().mean() < 1e-3, name


def test_tiles_that_hold_the_image_change_nothing(run, tmp_path):
    """To the bit, for arrays, paths, folders and scores."""
    photos = [blobs(61, 83), blobs(97, 64, 1)]
    for number, photo in enumerate(photos):
        Image.fromarray(photo).save(tmp_path / f"{number}.png")
    paths = sorted(tmp_path.glob("*.png"))
    wide = ["data.tiles={size: 97, overlap: 30}"]
    whole, tiled = Predictor.load(run), Predictor.load(run, overrides=wide)
    for one, other in zip(whole(photos) + whole(paths), tiled(photos) + tiled(paths), strict=True):
        assert_equal(one, other)
    streams = [[*one.stream(paths, on_error=None)] for one in (whole, tiled)]
    for (number, sample, one), (also, same, other) in zip(*streams, strict=True):
        assert number == also
        assert sample["original_height"] == same["original_height"]
        assert_equal(one, other)
    scores = [
        evaluate(run, overrides=overrides, output_dir=tmp_path / f"scores{len(overrides)}").metrics
        for overrides in ([], ["data.tiles={size: 4000}"])
    ]
    assert scores[0] == pytest.approx(scores[1], abs=0, nan_ok=True)


def test_every_input_is_predicted_in_the_same_tiles(run, tmp_path, capsys, monkeypatch):
    """An array, a file, a TIFF that is read by region, and the command; the image is larger than a tile."""
    monkeypatch.setattr(regions, "WHOLE_PIXELS", 1000)
    monkeypatch.setattr(regions, "MAX_DRAWN_PIXELS", 10000)
    monkeypatch.setattr(regions, "_DRAWN_SIDE", 100)
    image = blobs(100, 150)
    (tmp_path / "in").mkdir()
    Image.fromarray(image).save(tmp_path / "in/a.png")
    tifffile.imwrite(tmp_path / "in/b.tif", image, tile=(32, 48), compression="deflate")
    predictor = Predictor.load(run, overrides=[TILES])
    expected = predictor(image)
    for path in (tmp_path / "in/a.png", tmp_path / "in/b.tif"):
        assert_equal(predictor(path), expected)
    found = list(predictor.stream(sorted((tmp_path / "in").iterdir()), on_error=None))
    for _, sample, prediction in found:
        assert (sample["original_height"], sample["original_width"]) == (100, 150)
        assert_same([prediction], [expected], tolerance=1e-5)
    for name in ("sem_seg", "saliency", "masks"):
        if name in expected:
            assert expected[name].shape[-2:] == (100, 150)
    if "boxes" in expected:
        assert len(expected["boxes"])
        assert (expected["boxes"] >= 0).all()
        assert (expected["boxes"] <= torch.tensor([150, 100] * 2)).all()
        assert expected["boxes"].amax(0)[2] > 80, "some are beyond the first tile"
    command = ["predict", "--weights", run, "--input", tmp_path / "in", "--output", tmp_path / "out", TILES]
    assert main([*map(str, command)]) == 0
    document = json.loads((tmp_path / "out/predictions.json").read_text())
    assert [image["width"] for image in document["images"]] == [150, 150]
    for folder in predictor.task.folders:
        drawn = Image.open(tmp_path / "out" / folder / "b.png")
        is_map = folder in ("masks", "maps")
        assert (drawn.size == (150, 100)) == is_map, folder


def test_exported_files_of_one_size_take_large_images_in_tiles(run, tmp_path):
    suffix = ".onnx" if "detection" in str(run) else ".torchscript"
    size = (
        ["data.min_size_test=80", "data.max_size_test=80"] if "saliency" not in str(run) else ["data.size=80"]
    )
    export(run, tmp_path / f"model{suffix}", size=(80, 80), overrides=size)
    image = blobs(100, 100)
    expected = Predictor.load(run, overrides=[TILES, *size])(image)
    found = Predictor.load(tmp_path / f"model{suffix}", overrides=[TILES])(image)
    assert_nearly_same(expected, found)


@pytest.mark.parametrize(
    "kind", ["random", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("grid", "none"))]
)
def test_training_and_evaluation_take_tiles(run, tmp_path, kind):
    overrides = [
        f"data.tiles={{size: 48, overlap: 16, train: {kind}}}",
        "train.iterations=2",
        "data.workers=2",
    ]
    result = train(run / "config.yaml", overrides=overrides, output_dir=tmp_path / "run")
    assert result.metrics
    again = evaluate(tmp_path / "run").metrics
    assert again == pytest.approx(result.metrics, abs=0, nan_ok=True)


def test_boxes_may_be_on_tiffs_that_are_too_large_to_be_read_whole(draw_toy, tmp_path, monkeypatch):
    """They are checked, learned from and scored, in tiles alone."""
    config = write_config(detection, draw_toy, tmp_path)
    (tmp_path / "images").mkdir()
    objects, images = [], []
    for number in (1, 2):
        image = blobs(150, 200, number)
        tifffile.imwrite(tmp_path / f"images/{number}.tif", image, tile=(32, 48), compression="deflate")
        images.append({"id": number, "file_name": f"{number}.tif", "height": 150, "width": 200})
        for left in (10, 75, 150):
            right = left + 30
            one = {"id": len(objects) + 1, "image_id": number, "category_id": 1, "area": 750, "iscrowd": 0}
            outline = [[left, 60, right, 60, right, 85, left, 85]]
            objects.append({**one, "bbox": [left, 60, 30, 25], "segmentation": outline})
    document = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "thing"}]}
    (tmp_path / "a.json").write_text(json.dumps(document))
    part = f"{{images: {tmp_path}/images, annotations: {tmp_path}/a.json}}"
    overrides = [f"data.{name}={part}" for name in ("train", "val")]
    overrides += ["train.iterations=2", "model.score_threshold=0.3"]
    for module in (bands, regions):
        monkeypatch.setattr(module, "MAX_PIXELS", 20000)
    monkeypatch.setattr(regions, "WHOLE_PIXELS", 1000)
    with pytest.raises(DatasetError, match=r"1\.tif: refused, the header claims"):
        train(config, overrides=overrides, output_dir=tmp_path / "whole")
    result = train(config, overrides=[*overrides, TILES], output_dir=tmp_path / "tiles")
    assert "bbox/AP" in result.metrics


def test_a_broken_part_of_an_image_is_one_error(run, tmp_path, monkeypatch):
    monkeypatch.setattr(regions, "WHOLE_PIXELS", 1000)
    image = blobs(100, 150)
    for name in ("a", "b", "c"):
        tifffile.imwrite(tmp_path / f"{name}.tif", image, rowsperstrip=16, compression="deflate")
    content = (tmp_path / "b.tif").read_bytes()
    (tmp_path / "b.tif").write_bytes(content[: len(content) // 2])
    predictor, errors = Predictor.load(run, overrides=[TILES]), []
    found = predictor.stream(
        sorted(tmp_path.glob("*.tif")), lambda number, error: errors.append((number, error))
    )
    assert [number for number, _, _ in found] == [0, 2]
    ((number, error),) = errors
    assert number == 1
    assert "b.tif: rows " in str(error)


PEAK = """
import resource, sys
from res2net_dense.cli import main
code = main(sys.argv[1:])
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(code)
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_tiff_of_400_megapixels_takes_less_than_2_gb(run, tmp_path, run_code):
    """All of it: reading, predicting, merging, records, and the images that show the predictions."""
    (tmp_path / "in").mkdir()
    tile = blobs(32, 32).repeat(16, axis=0).repeat(16, axis=1)  # compresses well
    tifffile.imwrite(
        tmp_path / "in/a.tif", (tile for _ in range(40 * 40)), shape=(20000, 20000, 3), dtype=np.uint8,
        photometric="rgb", tile=(512, 512), compression="deflate", compressionargs={"level": 1},
    )  # fmt: skip
    command = ["predict", "--weights", run, "--input", tmp_path / "in", "--output", tmp_path / "out"]
    command += ["data.tiles={size: 1024, overlap: 128}", "data.workers=0"]
    command += ["model.score_threshold=0.5"] if "detection" in str(run) else []
    done = run_code(PEAK, *command, timeout=1700)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 2 * 10**6, "kB"
    (image,) = json.loads((tmp_path / "out/predictions.json").read_text())["images"]
    assert (image["height"], image["width"]) == (20000, 20000)
    for folder in ("masks", "maps"):
        if (tmp_path / "out" / folder / "a.png").exists() and folder:
            Image.MAX_IMAGE_PIXELS = None
            assert Image.open(tmp_path / "out" / folder / "a.png").size == (20000, 20000)


def train_samples(config, count=12, **changes):
    """Samples of `data.train` as they go into a detector."""
    config = load_config(config, [f"{key}={value}" for key, value in changes.items()])
    task = get_task(config.task)
    batches = itertools.islice(
        task.build_train_loader(task.prepare(config)), count // config.train.batch_size
    )
    return [sample for batch in batches for sample in batch]


@pytest.fixture
def detector(draw_toy, tmp_path):
    """A config whose images of 96 pixels are not resized."""
    plain = {"flip": 0.0, "photometric": "none", "aspect_ratio_grouping": False}
    sizes = {key: [40] if key == "min_size_train" else 40 for key in ("min_size_train", "max_size_train")}
    return write_config(detection, draw_toy, tmp_path, **plain, **sizes)


def test_random_tiles_are_drawn_around_objects_and_differ_between_epochs(detector):
    settings = {"data.tiles": "{size: 40, overlap: 8}"}
    samples = train_samples(detector, **settings)
    assert {tuple(sample["image"].shape) for sample in samples} == {(3, 40, 40)}
    objects = [sample["boxes"] for sample in samples]
    assert sum(len(boxes) > 0 for boxes in objects) >= 9, "but for objects that are larger than a tile"
    assert len({sample["tile"][:2] for sample in samples}) > 8
    again = train_samples(detector, **settings)
    assert [sample["tile"] for sample in again] == [sample["tile"] for sample in samples]


def test_a_grid_leaves_out_tiles_without_objects_unless_they_are_kept(detector):
    grid = "{size: 40, overlap: 8, train: grid}"
    samples = train_samples(detector, 60, **{"data.tiles": grid})
    places = {sample["tile"][:2] for sample in samples}
    assert places <= {(top, left) for top in (0, 32, 56) for left in (0, 32, 56)}
    assert all(len(sample["boxes"]) for sample in samples)
    kept = train_samples(detector, 60, **{"data.tiles": grid, "data.keep_empty": "true"})
    assert not all(len(sample["boxes"]) for sample in kept)


@pytest.mark.parametrize("share", [0.0, 0.9])
def test_objects_below_the_visible_share_are_not_learned(detector, share):
    tiles = f"{{size: 40, overlap: 8, train: grid, min_visible: {share}}}"
    samples = train_samples(detector, 60, **{"data.tiles": tiles, "data.keep_empty": "true"})
    source = get_task(detection).open_source(load_config(detector), train=True)
    ids = [source.annotations(index)["image_id"] for index in range(len(source))]
    for sample in samples:
        shares = visible_shares(source.boxes(ids.index(sample["image_id"])), sample["tile"])
        assert len(sample["boxes"]) == ((shares > 0) & (shares >= share)).sum()
    assert sum(len(sample["boxes"]) for sample in samples)


def test_an_overlap_as_large_as_the_tile_is_refused(detector):
    with pytest.raises(ConfigError, match=r"data\.tiles\.overlap.*must be below size = 40"):
        load_config(detector, ["data.tiles={size: 40, overlap: 40}"])
