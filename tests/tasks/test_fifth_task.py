"""A task that the package does not have: defined here, it trains, evaluates, predicts and exports."""

import json
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from res2net_dense import Predictor, evaluate, export, train
from res2net_dense.cli import main
from res2net_dense.config.load import CONFIGS
from res2net_dense.config.schema import Config, DataConfig, ModelConfig, Text
from res2net_dense.data.images import list_images, read_sample
from res2net_dense.data.layouts.base import Inspected, inspect_image
from res2net_dense.engine.run_folder import own_folder
from res2net_dense.errors import CheckpointError, ConfigError
from res2net_dense.findings import Findings
from res2net_dense.models.graphs import Graph
from res2net_dense.tasks import _REGISTERED as REGISTERED
from res2net_dense.tasks import Metric, Task, get_task, register_task

NAMES = ["dark", "bright"]


class MeanModel(ModelConfig):
    arch: Literal["mean"] = "mean"


class BrightnessData(DataConfig):
    train: Text | None = None
    val: Text | None = None


class BrightnessConfig(Config):
    task: Literal["brightness"]
    model: MeanModel = MeanModel()
    data: BrightnessData = BrightnessData()


class Photos(Inspected):
    """A folder; an image is bright if its mean is above the middle."""

    class_names = NAMES
    remarks = ()

    def __init__(self, folder):
        self.name, self.findings = folder, Findings()
        self._files = list_images(folder)

    def __len__(self):
        return len(self._files)

    def sample(self, index):
        sample = read_sample(self._files[index], index)
        return {**sample, "label": int(sample["image"].float().mean() > 127)}

    def inspect(self, index, *, thorough):
        return inspect_image(self._files[index], index, thorough=True)[1]


class Network(nn.Module):
    """One weight and one bias on the mean of an image."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(1, 2)

    def means(self, images):
        return images.float().mean((1, 2, 3), keepdim=False)[:, None] / 255 - 0.5

    def forward(self, batch):
        logits = self.backbone(self.means(torch.stack([sample["image"] for sample in batch])))
        if not self.training:
            return [{"logits": row} for row in logits]
        return {"loss": nn.functional.cross_entropy(logits, torch.tensor([s["label"] for s in batch]))}


class NetworkGraph(Graph):
    outputs = ("logits",)

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return (self.model.backbone(self.model.means(images)),)


class Accuracy:
    def __init__(self, source):
        self.source = source
        self.reset()

    def reset(self):
        self.right = []

    def process(self, inputs, outputs):
        for sample, output in zip(inputs, outputs, strict=True):
            truth = self.source.sample(sample["image_id"])["label"]
            self.right.append(int(output["logits"].argmax()) == truth)

    def evaluate(self):
        return {"share": float(np.mean(self.right)), "errors": float(len(self.right) - sum(self.right))}

    def table(self):
        return f"share {np.mean(self.right):.2f}"


class Brightness(Task[BrightnessConfig]):
    name = "brightness"
    config_class = BrightnessConfig

    def metrics(self, config):
        return [Metric("share", scale=1, headline=True), Metric("errors", "min")]

    def open_source(self, config, *, train):
        folder = config.data.train if train else config.data.val
        return Photos(folder) if folder else super().open_source(config, train=train)

    def build_model(self, config, *, load_weights=True):
        return Network()

    def build_graph(self, model):
        return NetworkGraph(model)

    def train_transform(self, config):
        return lambda sample, rng: sample

    def eval_transform(self, config):
        return lambda sample: sample

    def build_evaluator(self, config, source=None):
        return Accuracy(self.scored(config, source)[0])

    def decode(self, outputs, place, sample):
        return {"logits": outputs["logits"][place]}

    def draw(self, image, prediction, class_names, score):
        shade = int(prediction["logits"].argmax()) * 255
        return [Image.new("L", image.shape[1::-1], shade)]

    def to_records(self, prediction, image_id):
        label = int(prediction["logits"].argmax())
        return [{"image_id": image_id, "category_id": label + 1}]

    def summary(self, records, class_names, score):
        return f"{sum(record['category_id'] == 2 for record in records)} bright"


@pytest.fixture(autouse=True)
def registered():
    register_task(Brightness())
    yield
    del CONFIGS["brightness"], REGISTERED["brightness"]


@pytest.fixture
def config(tmp_path):
    """Sixteen gray photos to learn from, and eight others."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 16), ("val", 8)):
        (tmp_path / part).mkdir()
        for number in range(count):
            level = rng.integers(0, 100) + 150 * (number % 2)
            pixels = np.full((24, 32, 3), level, np.uint8)
            Image.fromarray(pixels).save(tmp_path / part / f"{number}.png")
    return {
        "task": "brightness",
        "backbone": {"name": "res2net50_26w_4s"},
        "data": {"train": str(tmp_path / "train"), "val": str(tmp_path / "val"), "workers": 0},
        "train": {"iterations": 60, "batch_size": 8, "reference_batch": 8, "optimizer": {"lr": 5.0}},
        "runtime": {"device": "cpu"},
    }


def test_it_trains_evaluates_predicts_and_exports(config, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    result = train(config, output_dir="~/run")
    assert result.metrics == {"share": 1.0, "errors": 0.0}
    results = (result.folder / "results.json").read_bytes()
    with own_folder(result.folder):  # as another training or evaluation does
        for use in (lambda: evaluate(result.folder), lambda: train(config, output_dir="~/run", resume=True)):
            with pytest.raises(ConfigError, match=f"{result.folder} is in use by process .*--output-dir"):
                use()
        assert evaluate("~/run", output_dir="~/again").metrics == result.metrics
    assert (result.folder / "results.json").read_bytes() == results
    assert [path.name for path in (tmp_path / "again").iterdir()] == ["results.json"]
    files = sorted((tmp_path / "val").iterdir())
    predictor = Predictor.load(result.folder)
    assert predictor.class_names == NAMES
    predictions = predictor(files)
    output = tmp_path / "model.onnx"
    exported = export(result.folder, output, dynamic=True, evaluate=True)
    assert exported.scores.metric == "share"
    assert exported.scores.drop == 0
    for one, other in zip(predictions, Predictor.load(output)(files), strict=True):
        torch.testing.assert_close(one["logits"], other["logits"], atol=1e-4, rtol=1e-4)

    line = ["predict", "--weights", result.folder, "--input", tmp_path / "val", "--output", tmp_path / "out"]
    assert main([*map(str, line)]) == 0
    assert "8 images, 4 bright, 0 files skipped" in capsys.readouterr().out
    document = json.loads((tmp_path / "out/predictions.json").read_text())
    assert [category["name"] for category in document["categories"]] == NAMES
    assert [one["category_id"] - 1 for one in document["annotations"]] == [
        int(prediction["logits"].argmax()) for prediction in predictions
    ]


def test_shared_checks_apply_to_it(config):
    config["data"]["train"] = None
    with pytest.raises(ConfigError, match="data.train is not set"):
        train(config)
    config["train"]["best_metric"] = "mIoU"
    config["data"]["train"] = config["data"]["val"]
    with pytest.raises(ConfigError, match="train.best_metric is 'mIoU'; there are share, errors"):
        train(config)
    config["backbone"]["weights"] = "nothing.pth"
    with pytest.raises(CheckpointError, match="nothing.pth"):
        train(config)


def test_an_unknown_task_names_those_there_are():
    with pytest.raises(ConfigError, match="unknown task 'x'; known: detection, .*brightness"):
        get_task("x")


def test_a_task_of_the_package_is_not_replaced():
    register_task(Brightness())  # again, as in a notebook
    with pytest.raises(ConfigError, match="classification is a task of the package"):
        register_task(get_task("classification"))
    assert "classification" not in REGISTERED
