"""Graphs give what the models give, at every size, and share nothing with them."""

import pytest
import torch
from exporting import sample, settled
from networks import TINY

from res2net_dense.backbones import create_classifier
from res2net_dense.deploy.parity import synthetic_images
from res2net_dense.models.classification import ClassificationModel
from res2net_dense.models.graphs import ClassificationGraph, Graph, SaliencyGraph, SegmentationGraph
from res2net_dense.models.saliency import build_saliency_model
from res2net_dense.models.segmentation import build_segmentation_model
from res2net_dense.tasks import get_task

SIZES = [(64, 64), (65, 97), (96, 160), (33, 200), (1, 1), (7, 90)]
BACKBONE = {"name": TINY}


def classifier():
    return settled(ClassificationModel(create_classifier(num_classes=5, **BACKBONE)))


def segmenter(arch="deeplabv3plus", num_classes=5, **options):
    return settled(build_segmentation_model(backbone=BACKBONE, arch=arch, num_classes=num_classes, **options))


def saliency(**options):
    return settled(build_saliency_model(backbone=BACKBONE, channels=8, **options))


@pytest.fixture(scope="module")
def models():
    """A shallow network of each task with the statistics of images."""
    return {
        "classification": classifier(),
        "semantic_segmentation": segmenter(),
        "saliency": saliency(edge_weight=1.0),
    }


def noise(size, count=2):
    return synthetic_images(count, size)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("task", ["classification", "semantic_segmentation", "saliency"])
def test_what_it_gives_is_the_prediction(models, task, size):
    """Of images that need padding too."""
    model, images = models[task], noise(size)
    graph = get_task(task).build_graph(model)
    with torch.no_grad():
        outputs = dict(zip(graph.outputs, graph(torch.stack(images)), strict=True))
        predictions = model([sample(image) for image in images])
    for place, prediction in enumerate(predictions):
        if task == "classification":
            torch.testing.assert_close(outputs["logits"][place], prediction["logits"])
        elif task == "saliency":
            torch.testing.assert_close(outputs["saliency"][place], prediction["saliency"])
            torch.testing.assert_close(outputs["logits"][place].sigmoid(), prediction["saliency"])
        else:
            assert outputs["labels"].dtype == torch.uint8
            assert outputs["logits"].shape == (2, 5, *size)
            assert (outputs["labels"][place] != prediction["sem_seg"]).sum() <= 2
    assert all(value.dtype == torch.float32 for name, value in outputs.items() if name != "labels")


@pytest.mark.parametrize("arch", ["unet", "fpn", "pan", "segformer", "pspnet"])
def test_other_architectures_of_segmentation(arch):
    model = segmenter(arch)
    (image,) = noise((50, 90), 1)
    with torch.no_grad():
        labels, _ = SegmentationGraph(model)(image[None])
        (prediction,) = model([sample(image)])
    assert (labels[0] != prediction["sem_seg"]).sum() <= 2


@pytest.mark.parametrize(("classes", "dtype"), [(255, torch.uint8), (256, torch.int64), (300, torch.int64)])
def test_labels_fit_their_type(classes, dtype):
    """255 means ignored in uint8."""
    model = segmenter("fpn", classes)
    with torch.no_grad():
        model.segmentation_head[0].bias[-1] = 1e3
        labels, _ = SegmentationGraph(model)(noise((32, 32), 1)[0][None])
    assert labels.dtype == dtype
    assert (labels == classes - 1).all()


def test_it_shares_nothing_with_the_model(models):
    for task, model in models.items():
        before = {name: value.clone() for name, value in model.state_dict().items()}
        modes = [module.training for module in model.modules()]
        hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
        graph = get_task(task).build_graph(model.train())
        assert isinstance(graph, Graph)
        assert not any(module.training for module in graph.modules())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in graph.modules())
        assert not any(parameter.requires_grad for parameter in graph.parameters())
        for tensor in graph.state_dict().values():
            tensor.zero_()
        assert all(module.training for module in model.modules())
        model.eval()
        assert [module.training for module in model.modules()] == modes
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        after = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
        assert after == hooks
        assert all(parameter.requires_grad for parameter in model.parameters())


def test_what_only_learns_is_left_out():
    """The auxiliary head, the logits of the deeper levels."""
    model = segmenter(aux_weight=0.4)
    names = SegmentationGraph(model).state_dict().keys()
    assert any(name.startswith("aux_head") for name in model.state_dict())
    assert not any("aux_head" in name for name in names)
    model = saliency(side_weight=1.0)
    assert any("sides" in name for name in model.state_dict())
    assert not any("sides" in name for name in SaliencyGraph(model).state_dict())


def test_what_the_model_saw_before_does_not_matter():
    """A batch of several sizes leaves its extents in the model."""
    model, (image,) = saliency(), noise((50, 70), 1)
    with torch.no_grad():
        expected = SaliencyGraph(model)(image[None])
        model([sample(image), sample(image[:, :30])])
        got = SaliencyGraph(model)(image[None])
    assert all(torch.equal(*pair) for pair in zip(expected, got, strict=True))


def test_images_alone_and_in_company_are_the_same(models):
    images = torch.stack(noise((65, 97), 3))
    for task, model in models.items():
        graph = get_task(task).build_graph(model)
        with torch.no_grad():
            together = graph(images)[-1]
            alone = torch.cat([graph(image[None])[-1] for image in images])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_a_model_in_half_precision_gives_float32():
    graph = ClassificationGraph(classifier())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert graph(torch.stack(noise((40, 40))))[0].dtype == torch.float32
