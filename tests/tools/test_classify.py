"""`tools/classify.py` as a person runs it."""

import json

import numpy as np
import pytest
import torch
from networks import TINY
from PIL import Image
from running import assert_error_line

from res2net_dense import create_classifier, get_model, predict_image
from res2net_dense.backbones.weights import WEIGHTS
from res2net_dense.models.classification import ClassificationModel
from res2net_dense.weight_files import save_weights

TOOL = "tools/classify.py"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name in ("b.png", "a.jpg", "deep/c.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (50, 60, 3), dtype=np.uint8)).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """What a classification run leaves."""
    torch.manual_seed(0)
    network = create_classifier(TINY, 3)
    config = {
        "task": "classification",
        "backbone": {"name": TINY},
        "model": {"pixel_mean": [120, 120, 120], "pixel_std": [60, 60, 60]},
        "data": {"class_names": ["cat", "dog", "fox"], "resize_size": 48, "crop_size": 40},
    }
    path = tmp_path_factory.mktemp("run") / "model_best.safetensors"
    metadata = {"metadata": json.dumps({"config": config})}
    return save_weights(path, ClassificationModel(network).state_dict(), metadata)


def test_a_table_for_each_image_and_the_same_as_json(images, weights, run_tool, tmp_path):
    (images / "deep/broken.jpg").write_bytes(b"\xff\xd8\xff")
    out = tmp_path / "new/classes.json"
    process = run_tool(
        TOOL,
        images / "b.png",
        images / "deep",
        "no/such.jpg",
        "--weights",
        weights,
        "--json",
        out,
        "--top",
        2,
    )
    assert process.returncode == 0, process.stderr
    model = get_model(TINY, weights)
    document = json.loads(out.read_text())
    files = [str(images / "b.png"), str(images / "deep/c.png")]
    assert [row["file"] for row in document["images"]] == files
    lines = process.stdout.splitlines()
    assert len(lines) == 6
    for row, start in zip(document["images"], (0, 3), strict=True):
        expected = predict_image(model, row["file"], top=2)
        assert [found["label"] for found in row["classes"]] == [found["label"] for found in expected]
        assert row["classes"][0]["score"] == pytest.approx(expected[0]["score"], rel=1e-4)
        assert lines[start] == row["file"]
        assert lines[start + 1].split() == [f"{100 * expected[0]['score']:.2f}", "%", expected[0]["label"]]
    for name in ("broken.jpg", "no/such.jpg"):
        assert sum(name in message for message in document["skipped"]) == 1
        assert sum(name in line for line in process.stderr.splitlines()) == 1


def test_nothing_readable(images, weights, run_tool, tmp_path):
    (tmp_path / "x.png").write_bytes(b"")
    process = run_tool(TOOL, tmp_path, "--weights", weights)
    assert process.returncode == 1
    assert process.stdout == ""
    assert "skipped:" in process.stderr
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize(("arguments", "words"), [
    ([], ["--model", "--weights"]),
    (["--model", "res2net51_26w_4s"], ["did you mean"]),
    (["--model", "res2net50_26w_4s.nothing"], ["published are in1k"]),
    (["--weights", "missing.pth"], ["missing.pth does not exist"]),
    (["--weights", "in1k"], ["give --model NAME too, or --weights NAME.in1k"]),
    (["--weights", "res2net50_26w_4s.nothing"], ["published are in1k"]),
    (["--model", "res2net50_26w_4s", "--weights", "resnet50.tv_in1k"], ["resnet50"]),
    (["--model", "my.pth"], ["my.pth is a file"]),
    (["--model", "resnet50", "--json", "a.jpg"], ["must end in .json"]),
])  # fmt: skip
def test_wrong_turns(images, run_tool, arguments, words):
    assert_error_line(run_tool(TOOL, images, *arguments), *words)


def test_a_full_tag_alone_names_network_and_weights(images, run_tool):
    """Looked up as --model NAME.TAG is; of a row that is never downloaded by itself."""
    row = next(row for row in WEIGHTS.values() if row.sha256 is None)
    for option in ("--weights", "--model"):
        assert_error_line(run_tool(TOOL, images, option, row.key), row.key, "no published SHA-256")


def test_no_images_at_all(weights, run_tool, tmp_path):
    assert_error_line(run_tool(TOOL, tmp_path, "x.png", "--weights", weights), str(tmp_path), "x.png")


def test_weights_of_another_network(images, weights, run_tool):
    assert_error_line(
        run_tool(TOOL, images, "--model", "resnet50", "--weights", weights), "not resnet50", str(weights)
    )


def test_a_run_folder_is_its_best_weights(images, weights, run_tool):
    of_file, of_folder = (
        run_tool(TOOL, images / "b.png", "--weights", path) for path in (weights, weights.parent)
    )
    assert of_folder.stdout == of_file.stdout
    assert "fox" in of_file.stdout
