"""What tests of exported files share: `from exporting import ...`."""

import torch
from torch import nn

from res2net_dense.deploy.description import Description
from res2net_dense.deploy.exported import ExportedModel
from res2net_dense.deploy.parity import synthetic_images
from res2net_dense.models.classification import ClassificationModel
from res2net_dense.models.graphs import ClassificationGraph, SaliencyGraph, SegmentationGraph
from res2net_dense.models.saliency import SaliencyModel
from res2net_dense.models.segmentation import SegmentationModel
from res2net_dense.tasks import get_task

CLASSES = 5


def layer(inside, outside, stride=1):
    """A convolution with norm and ReLU."""
    conv = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outside), nn.ReLU())


class Classifier(nn.Module):
    """A plain network of `ClassificationModel`."""

    num_classes = CLASSES

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(layer(3, 8, 2), layer(8, 8, 2))
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.fc(self.layers(x).mean((2, 3)))


class Encoder(nn.Module):
    """A backbone as smp's networks have it: the list of its maps."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([layer(3, 8, 2), layer(8, 16, 2)])

    def forward(self, x):
        maps = [x]
        for part in self.layers:
            maps.append(part(maps[-1]))
        return maps


class Last(nn.Module):
    """A decoder that takes only the last map."""

    def __init__(self):
        super().__init__()
        self.layer = layer(16, 16)

    def forward(self, maps):
        return self.layer(maps[-1])


class Named(nn.Module):
    """A backbone of ours: its maps by name."""

    out_channels = {"res2": 8, "res3": 8}
    out_strides = {"res2": 4, "res3": 8}

    def __init__(self):
        super().__init__()
        self.res2 = nn.Sequential(layer(3, 8, 2), layer(8, 8, 2))
        self.res3 = layer(8, 8, 2)

    def forward(self, x):
        first = self.res2(x)
        return {"res2": first, "res3": self.res3(first)}


def tiny_model(task):
    """A small network of a task with the norm statistics of a few images, in evaluation mode."""
    torch.manual_seed(0)
    model = {
        "classification": lambda: ClassificationModel(Classifier()),
        "semantic_segmentation": lambda: SegmentationModel(
            Encoder(), Last(), nn.Conv2d(16, CLASSES, 1), num_classes=CLASSES, divisor=4
        ),
        "saliency": lambda: SaliencyModel(Named(), channels=8),
    }[task]()
    return settled(model)


def settled(model, branches=1.0):
    """Give a network the norm statistics of images, as training would, and random scales.

    branches: a factor on what residual branches add. In deep networks random ones amplify rounding: of 66
    blocks it is 1e-3 of the logits, whatever computes them.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
            module.momentum = None  # the mean of what it sees
            if name.endswith("bn3"):
                module.weight.data *= branches
    model.train()
    with torch.no_grad():
        model([targets(image) for image in synthetic_images(3, (96, 128))])
    return model.eval()


def targets(image):
    """A sample of any task to learn from."""
    size = image.shape[-2:]
    return sample(image) | {
        "label": 1,
        "sem_seg": torch.randint(0, CLASSES, size),
        "saliency": torch.rand(size).round(),
    }


def sample(image, size=None):
    """A sample of an image that had another size before."""
    height, width = size or image.shape[-2:]
    return {"image": image, "original_height": height, "original_width": width}


def graph_of(task, model):
    """What is exported of a model."""
    kinds = {
        "classification": ClassificationGraph,
        "semantic_segmentation": SegmentationGraph,
        "saliency": SaliencyGraph,
    }
    return kinds[task](model).eval()


def description_of(task, graph, **fields):
    """A description with the fields that are required."""
    fields = {"arch": "tiny", "backbone": "tiny", "class_names": list("abcde"), **fields}
    return Description(task=task, outputs=list(graph.outputs), **fields)


def stood_in(task, graph, change=lambda outputs: None, **fields):
    """An exported model without a file: it runs the graph, and `change` on its outputs.

    Its `batches` are the numbers of images of all calls.
    """

    def run(images):
        model.batches.append(len(images))
        outputs = dict(zip(graph.outputs, (part.clone() for part in graph(images)), strict=True))
        change(outputs)
        return list(outputs.values())

    model = ExportedModel("model.onnx", run, description_of(task, graph, **fields), get_task(task))
    model.batches = []
    return model


def assert_same(expected, got, tolerance=1e-4):
    """Two lists of predictions are equal, labels of pixels but for two."""
    assert len(expected) == len(got)
    for one, other in zip(expected, got, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert value.shape == other[name].shape, name
            assert value.dtype == other[name].dtype, name
            if value.is_floating_point():
                assert torch.allclose(value, other[name], atol=tolerance, rtol=1e-5), name
            else:
                assert int((value != other[name]).sum()) <= 2, name
