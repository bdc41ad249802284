"""The gate lets through what computes the same, and deletes what does not."""

import copy
import json
import math

import pytest
import torch
from exporting import description_of, graph_of, stood_in, tiny_model
from running import assert_one_line
from torch import nn

from res2net_dense.deploy.export import export
from res2net_dense.deploy.parity import compare, delete_export, gate, sizes_to_try, synthetic_images
from res2net_dense.errors import ExportError
from res2net_dense.models.graphs import Graph
from res2net_dense.tasks import get_task

TASKS = ("classification", "semantic_segmentation", "saliency")
SEGMENTATION = "semantic_segmentation"


@pytest.fixture(scope="module")
def models():
    """A small network of each task."""
    return {task: tiny_model(task) for task in TASKS}


def written(task, model, path, spoil=lambda graph: None, **fields):
    """Export a model of which `spoil` changed the graph; returns the true graph."""
    graph, broken = graph_of(task, model), graph_of(task, model)
    spoil(broken)
    export(broken, path, description_of(task, graph, **fields))
    return graph


def first(graph, kind):
    return next(module for module in graph.modules() if isinstance(module, kind))


def one_statistic(graph):
    first(graph, nn.BatchNorm2d).running_var[0] *= 2


def one_layer_by_a_hundredth(graph):
    first(graph, nn.Conv2d).weight *= 1.01


def test_a_true_file_passes(models, tiny_file):
    graph, file = graph_of(SEGMENTATION, models[SEGMENTATION]), tiny_file(SEGMENTATION, "onnx")
    report = gate(graph, file, get_task(SEGMENTATION), model=models[SEGMENTATION])
    assert file.exists()
    assert_good(report, graph)
    table = report.table()
    header = ["size", "batch", "output", "max", "difference", "agreement", "verdict"]
    assert table.splitlines()[0].split() == header
    assert table.count("good") == len(report.rows)
    assert "synthetic" in table
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert plain["passed"] is True
    assert plain["tolerance"] == {"difference": 1e-3, "boxes": 0.1, "agreement": 0.9999}
    assert len(plain["rows"]) == len(report.rows)


@pytest.mark.parametrize("task", TASKS)
def test_what_computes_the_same_passes(task, models):
    graph = graph_of(task, models[task])
    assert_good(compare(graph, stood_in(task, graph), model=models[task]), graph)


def assert_good(report, graph):
    """All sizes, batches and outputs were compared and are equal."""
    assert report.passed
    assert report.failures() == []
    rows = [row for row in report.rows if not row.output.startswith("predicted")]
    assert {row.output for row in rows} == set(graph.outputs)
    assert {row.batch for row in rows} == {1, 2}
    assert len({row.size for row in rows}) == 4
    assert all(row.max_abs < 1e-4 or math.isnan(row.max_abs) for row in report.rows)
    assert sum(row.output.startswith("predicted") for row in report.rows) == 4


@pytest.mark.parametrize("spoil", [one_statistic, one_layer_by_a_hundredth], ids=lambda f: f.__name__)
def test_a_broken_file_is_deleted(spoil, models, tmp_path):
    """And an older one, which it was to replace, stays."""
    target, new = tmp_path / "model.torchscript", tmp_path / ".new.torchscript"
    target.write_bytes(b"older")
    graph = written(SEGMENTATION, models[SEGMENTATION], new, spoil, format="torchscript")
    (tmp_path / ".new.torchscript.json").write_text("{}")
    with pytest.raises(ExportError) as error:
        gate(graph, new, get_task(SEGMENTATION), name=target)
    assert_one_line(error, f"{target} is not kept, it differs from the model: logits at", "at most 0.001")
    assert [path.name for path in tmp_path.iterdir()] == ["model.torchscript"]
    assert target.read_bytes() == b"older"


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("spoil", [one_statistic, one_layer_by_a_hundredth], ids=lambda f: f.__name__)
def test_a_small_change_is_noticed_in_every_task(task, spoil, models):
    broken = graph_of(task, models[task])
    spoil(broken)
    assert not compare(graph_of(task, models[task]), stood_in(task, broken)).passed


def test_a_file_of_one_size_is_tried_at_it(models, tmp_path):
    path = tmp_path / "model.torchscript"
    graph = written(SEGMENTATION, models[SEGMENTATION], path, format="torchscript", size=(50, 70), batch=3)
    task, images = get_task(SEGMENTATION), synthetic_images(1, (300, 200))
    report = gate(graph, path, task, images, model=models[SEGMENTATION])
    assert {(row.size, row.batch) for row in report.rows if "predicted" not in row.output} == {((50, 70), 3)}
    assert "synthetic" not in report.table()


def test_a_file_that_does_not_run_is_deleted(models, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"nothing")
    with pytest.raises(ExportError) as error:
        gate(graph_of("saliency", models["saliency"]), path, get_task("saliency"), name="final.onnx")
    assert_one_line(error, "final.onnx is not kept, it does not run: final.onnx cannot be loaded")
    assert not path.exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda o: o["logits"][0, 0].fill_(math.nan), "logits at 224x224, batch 1 by inf"),
        (lambda o: o["logits"][0, 0, 0, 0].add_(2e-3), "logits at 224x224, batch 1 by 0.002 (at most 0.001)"),
        (lambda o: o["labels"][0, :9, :9].fill_(99), "labels at 224x224, batch 1 in 0.161 % of the labels"),
        (lambda o: o["labels"][0, :9, :9].add_(1).remainder_(5), "labels at 224x224, batch 1 in 0.161 %"),
        (lambda o: o.update(labels=o["labels"][..., 1:]), "(1, 224, 223) instead of (1, 224, 224)"),
    ],
    ids=["nan", "logit", "no class", "another class", "shape"],
)  # fmt: skip
def test_what_differs_is_said_with_its_numbers(change, words, models):
    graph = graph_of(SEGMENTATION, models[SEGMENTATION])
    report = compare(graph, stood_in(SEGMENTATION, graph, change))
    assert not report.passed
    assert words in report.failures()[0]
    assert "DIFFERS" in report.table()
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["passed"] is False


def test_a_network_without_finite_outputs_passes_nowhere(models):
    graph = graph_of("saliency", models["saliency"])
    first(graph, nn.Conv2d).weight[:] = math.nan
    assert not compare(graph, stood_in("saliency", graph)).passed


def test_classes_that_are_as_good_as_equal_may_change_places(models):
    """Where the logits differ by less than what they may, labels follow them."""
    model = copy.deepcopy(models[SEGMENTATION])
    head = model.segmentation_head
    with torch.no_grad():
        head.weight[1], head.bias[1] = head.weight[0], head.bias[0] + 1e-4
    graph = graph_of(SEGMENTATION, model)

    def swap(outputs):
        outputs["logits"][:, 0] += 3e-4
        outputs["labels"] = outputs["logits"].argmax(1).to(torch.uint8)

    report = compare(graph, stood_in(SEGMENTATION, graph, swap), model=model)
    assert report.passed
    for name in ("labels", "predicted sem_seg"):
        assert min(row.agreement for row in report.rows if row.output == name) < 0.99


def test_a_graph_that_is_not_the_model_is_noticed(models):
    """The file may be true to a graph that is not."""
    other = tiny_model(SEGMENTATION)
    one_statistic(other)
    graph = graph_of(SEGMENTATION, other)
    report = compare(graph, stood_in(SEGMENTATION, graph), model=models[SEGMENTATION])
    assert {row.output for row in report.rows if not row.passed} == {"predicted sem_seg"}


def test_int8_has_but_to_run(models):
    graph = graph_of(SEGMENTATION, models[SEGMENTATION])
    coarse = stood_in(SEGMENTATION, graph, lambda o: o["logits"].mul_(5).round_(), precision="int8")
    report = compare(graph, coarse)
    assert report.passed
    assert "int8 is another network" in report.table()
    spoilt = stood_in(SEGMENTATION, graph, lambda o: o["logits"].fill_(math.inf), precision="int8")
    assert not compare(graph, spoilt).passed


@pytest.mark.parametrize("divisor", [1, 16, 32, 256])
@pytest.mark.parametrize("size", [(224, 224), (480, 640), (30, 50), (640, 333)])
def test_sizes(size, divisor):
    sizes = sizes_to_try(*size, divisor)
    assert len(set(sizes)) == 4
    assert any(height == width for height, width in sizes)
    assert any(height > width for height, width in sizes)
    assert any(height < width for height, width in sizes)
    step = max(divisor, 32)
    assert all(length % step for length in (*sizes[2], *sizes[3]))
    assert all(length % step == 0 for length in (*sizes[0], *sizes[1]))


class Boxes(Graph):
    """Two boxes of equal score and one more, where an image is not black."""

    outputs = ("boxes", "labels", "scores", "masks")
    divisor = 32
    by_tracing = True

    def forward(self, images):
        size = torch.tensor([images.shape[-1], images.shape[-2]] * 2)
        boxes = torch.tensor([[0.1, 0.1, 0.4, 0.5], [0.5, 0.2, 0.9, 0.9], [0.2, 0.2, 0.6, 0.6]]) * size
        found = 3 if images.float().mean() > 1 else 0
        masks = torch.linspace(0, 1, 28).expand(3, 28, 28)
        scores = torch.tensor([0.9, 0.9, 0.3])
        return boxes[:found], torch.tensor([1, 1, 0])[:found], scores[:found], masks[:found]


def swap_the_equal(outputs):
    for name, value in outputs.items():
        outputs[name] = value[[1, 0, 2]]


def test_detections_of_equal_score_may_come_in_any_order():
    report = compare(Boxes(), stood_in("detection", Boxes(), swap_the_equal, batch=1))
    assert report.passed
    assert "3 detections" in report.table()


def with_one_more(score):
    """Another detection, apart from the others."""

    def change(outputs):
        more = {"boxes": torch.ones(1, 4), "labels": torch.tensor([2]), "scores": torch.tensor([score])}
        for name, value in outputs.items():
            outputs[name] = torch.cat([value, more.get(name, value[:1])])

    return change


def without_all_but(number):
    return lambda outputs: outputs.update({name: value[:number] for name, value in outputs.items()})


def with_the_last_elsewhere(outputs):
    outputs["boxes"][2] += 50


def with_the_rival_of_the_first(outputs):
    """A box that overlaps it and has its score, as non-maximum suppression may choose."""
    outputs["boxes"][0] += 5


def with_all_elsewhere(outputs):
    outputs["boxes"] += 50


@pytest.mark.parametrize(
    ("threshold", "most", "change", "passes", "words"),
    [
        (0.05, 100, with_one_more(0.0505), True, "3 detections"),
        (0.05, 100, with_one_more(0.06), False, "has 4 detections instead of 3"),
        (0.3, 4, with_one_more(0.3005), True, "detections"),
        (0.3, 4, with_one_more(0.4), False, "has 4 detections instead of 3"),
        (0.05, 3, with_the_last_elsewhere, True, "2 detections"),
        (0.05, 4, with_the_last_elsewhere, False, "DIFFERS, by 50 (at most 0.1)"),
        (0.05, 3, with_the_rival_of_the_first, False, "DIFFERS, by 5 (at most 0.1)"),
        (0.05, 1, without_all_but(0), False, "has 0 detections instead of 3"),
        (0.05, 2, without_all_but(1), False, "has 1 detections instead of 3"),
        (0.05, 3, without_all_but(2), False, "has 2 detections instead of 3"),
        (0.05, 3, without_all_but(0), False, "has 0 detections instead of 3"),
        (0.99, 1, with_all_elsewhere, True, "were not compared"),
    ],
)
def test_only_detections_near_the_cut_may_be_on_one_side_alone(threshold, most, change, passes, words):
    """Those just above the threshold, and the last of as many as are reported at most."""
    config = {"model": {"score_threshold": threshold, "detections_per_image": most}}
    report = compare(Boxes(), stood_in("detection", Boxes(), change, batch=1, config=config))
    assert report.passed is passes
    assert words in report.table()


@pytest.mark.parametrize(
    ("change", "output", "words"),
    [
        (lambda o: o["boxes"][2, 0].add_(0.5), "boxes", "(at most 0.1)"),
        (lambda o: o["scores"][0].sub_(0.01), "scores", "by 0.01 (at most 0.001)"),
        (lambda o: o["labels"].fill_(1), "labels", "33.3 % of the labels"),
        (lambda o: o["masks"][1].mul_(0.9), "masks", "by 0.1 (at most 0.001)"),
        (lambda o: o["boxes"].fill_(math.nan), "boxes", "by inf"),
        (lambda o: o.update({k: v[:2] for k, v in o.items()}), "boxes", "2 detections instead of 3"),
    ],
    ids=["box", "score", "label", "mask", "nan", "one less"],
)
def test_detections_that_differ_are_said(change, output, words):
    report = compare(Boxes(), stood_in("detection", Boxes(), change, batch=1))
    failed = [row.output for row in report.rows if not row.passed]
    assert output in failed
    assert any(words in text for text in report.failures()), report.failures()


def test_images_with_detections_are_taken():
    black = torch.zeros(3, 100, 100, dtype=torch.uint8)
    exported = stood_in("detection", Boxes(), batch=1)
    nothing = compare(Boxes(), exported, [black])
    assert nothing.passed
    assert "no detection is on both sides" in nothing.table()
    report = compare(Boxes(), exported, [black, *synthetic_images(1)])
    assert "no detection is on both sides" not in report.table()
    assert all(row.note == "3 detections" for row in report.rows)


def test_what_belongs_to_a_file_goes_with_it(tmp_path):
    for name in ("a.xml", "a.bin", "a.xml.json", "b.onnx", "b.bin"):
        (tmp_path / name).write_bytes(b"")
    delete_export(tmp_path / "a.xml")
    delete_export(tmp_path / "b.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["b.bin"]


def test_the_images_are_always_the_same():
    one, other = synthetic_images(2), synthetic_images(2)
    assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))
    assert not torch.equal(*one)
    assert all(image.dtype == torch.uint8 and image.float().std() > 30 for image in one)
