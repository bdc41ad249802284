"""Weights for RGB in networks of other channels: one rule in every task and adapter, that of timm and smp."""

import pytest
import timm
import torch
from networks import TINY, TINY_V1B
from tiny_tasks import classification, detection, saliency, segmentation, write_config

import res2net_dense
from res2net_dense.config import load_config
from res2net_dense.convert.load import adapt_input
from res2net_dense.integrations.torchvision import res2net_fpn_backbone
from res2net_dense.tasks import get_task

CHANNELS = (1, 2, 4, 6, 16)


@pytest.fixture(scope="module", params=[TINY, TINY_V1B, "res2net_dla60"])
def published(request, tmp_path_factory):
    """A network's name, a file of its weights for RGB, and the first of them."""
    network = res2net_dense.create_classifier(request.param, 3)
    file = tmp_path_factory.mktemp("weights") / "rgb.pth"
    torch.save(network.state_dict(), file)
    return request.param, file, next(iter(network.parameters())).detach()


def first_of(model):
    return next(module for module in model.modules() if isinstance(module, torch.nn.Conv2d)).weight.detach()


@pytest.mark.parametrize("channels", CHANNELS)
def test_the_first_convolution_is_adapted_as_timm_does(published, channels):
    name, file, rgb = published
    network = res2net_dense.create_backbone(name, weights=file, in_channels=channels)
    expected = timm.models.adapt_input_conv(channels, rgb.clone())
    torch.testing.assert_close(first_of(network), expected)
    assert f"adapted from 3 to {channels} input channels" in network.weights_report.text()
    grey = torch.rand(1, 1, 64, 64)
    if channels in (1, 6):  # a grey image gives what it gave as RGB
        whole = res2net_dense.create_backbone(name, weights=file).eval()(grey.expand(1, 3, 64, 64))
        found = network.eval()(grey.expand(1, channels, 64, 64))
        for key in whole:
            torch.testing.assert_close(found[key], whole[key], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("task", [detection, segmentation, saliency, classification])
def test_every_task_adapts_them_by_the_same_rule(task, draw_toy, tmp_path):
    if task == detection:
        pytest.importorskip("detectron2")
    network = res2net_dense.create_classifier(TINY, 3)
    torch.save(network.state_dict(), tmp_path / "rgb.pth")
    config = load_config(
        write_config(task, draw_toy, tmp_path),
        [
            f"backbone.weights={tmp_path / 'rgb.pth'}", "data.channels=5", "model.num_classes=3",
            "model.pixel_mean=[1, 2, 3, 4, 5]", "model.pixel_std=[1, 1, 1, 1, 1]",
        ] if task != saliency else [
            f"backbone.weights={tmp_path / 'rgb.pth'}", "data.channels=5",
            "model.pixel_mean=[1, 2, 3, 4, 5]", "model.pixel_std=[1, 1, 1, 1, 1]",
        ],
    )  # fmt: skip
    model = get_task(task).build_model(config)
    backbone = model.backbone.bottom_up if task == detection else model.backbone
    assert first_of(backbone).equal(adapt_input(next(iter(network.parameters())).detach(), 5))
    assert model.pixel_mean.flatten().tolist() == [1, 2, 3, 4, 5]


def test_the_adapter_of_torchvision_does_too(tmp_path):
    network = res2net_dense.create_classifier(TINY, 3)
    torch.save(network.state_dict(), tmp_path / "rgb.pth")
    fpn = res2net_fpn_backbone(TINY, weights=tmp_path / "rgb.pth", in_channels=4)
    assert first_of(fpn).equal(adapt_input(next(iter(network.parameters())).detach(), 4))
