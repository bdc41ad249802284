"""The saliency network: padding changes nothing, on every backbone; everything learns; errors are clear."""

import copy
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from comparison import like_trained
from networks import TINY, TINY_V1B, every_network
from PIL import Image

from res2net_dense.backbones import list_backbones
from res2net_dense.config.saliency import SaliencyLosses, SaliencyModelConfig
from res2net_dense.errors import ConfigError
from res2net_dense.models.decoders.poolnet import BINS
from res2net_dense.models.resizing import cell_means, resized
from res2net_dense.models.saliency import DECODERS, build_saliency_model
from res2net_dense.models.saliency_losses import LOSSES

SIZES = ((70, 97), (97, 64), (33, 45), (96, 96))


def build(name=TINY, options=None, **keywords):
    torch.manual_seed(0)
    settings = {"channels": 16, "norm": "GN", "edge_weight": 1.0, **keywords}
    model = build_saliency_model(backbone={"name": name, **(options or {})}, **settings)
    return like_trained(model)


def samples(sizes=SIZES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for number, (height, width) in enumerate(sizes):
        yield {
            "image": torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator),
            "saliency": (torch.rand(height, width, generator=generator) > 0.6).float(),
            "file_name": f"{number}.jpg",
            "image_id": number,
            "original_height": height + 13,
            "original_width": width * 2,
        }


def assert_padding_changes_nothing(model, batch):
    model.eval()
    with torch.no_grad():
        maps = [prediction["saliency"] for prediction in model(batch)]
        losses = model.image_losses(batch)
        for number, sample in enumerate(batch):
            (alone,) = model([sample])
            torch.testing.assert_close(maps[number], alone["saliency"], atol=1e-5, rtol=0)
            assert maps[number].shape == (sample["original_height"], sample["original_width"])
            for name, loss in model.image_losses([sample]).items():
                torch.testing.assert_close(losses[name][number], loss[0], atol=1e-5, rtol=1e-5)


@every_network(name for name in list_backbones() if "next29" not in name)
def test_padding_changes_no_map_and_no_loss(name):
    assert_padding_changes_nothing(build(name), list(samples()))


@pytest.mark.parametrize(
    "options",
    [
        {"norm": "GN"},
        {"norm": "FrozenBN"},
        {"output_stride": 8},
        {"pool_padding": "ignored"},
        {"stride_in_1x1": True},
        {"dcn_stages": ["res4", "res5"]},
        {"out_features": ["res3", "res5"]},
        {"checkpoint_activations": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", [TINY, TINY_V1B])
def test_padding_changes_nothing_with_any_option_of_the_backbone(name, options):
    assert_padding_changes_nothing(build(name, options), list(samples()))


@pytest.mark.parametrize("norm", ["GN", "BN"])
@pytest.mark.parametrize("arch", DECODERS)
def test_padding_changes_nothing_with_any_decoder_loss_and_norm(arch, norm):
    losses = {"bce": 0.5, "iou": 0.5, "ssim": 1.0, "structure": 1.0}
    assert_padding_changes_nothing(build(arch=arch, norm=norm, losses=losses), list(samples()))


def test_a_configuration_can_name_every_decoder_and_loss():
    assert get_args(SaliencyModelConfig.model_fields["arch"].annotation) == tuple(DECODERS)
    assert SaliencyLosses.model_fields.keys() == LOSSES.keys()


def test_without_the_hooks_padding_would_matter():
    """What the tests above would find if the padding leaked into the images."""
    model, batch = build().eval(), list(samples())
    with torch.no_grad():
        right = [prediction["saliency"] for prediction in model(batch)]
        for module in model.modules():
            module._forward_pre_hooks.clear()
            module._forward_hooks.clear()
        wrong = [prediction["saliency"] for prediction in model(batch)]
    assert min((one - other).abs().max() for one, other in zip(right, wrong, strict=True)) > 0.05


def test_a_copy_has_sizes_of_its_own():
    """The moving average is a copy of the network, which sees other batches than the network does."""
    model = build().eval()
    averaged = copy.deepcopy(model)
    with torch.no_grad():
        list(model(list(samples(((40, 90), (90, 40))))))
        together = averaged(list(samples()))
        alone = [averaged([sample])[0] for sample in samples()]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one["saliency"], other["saliency"], atol=1e-5, rtol=0)


def test_gradients_of_a_padded_batch_are_those_of_its_samples():
    """The mean over single images, norms fixed; recomputed activations see the same padding."""
    model, batch = build(options={"norm": "FrozenBN"}).train(), list(samples())
    sum(model(batch).values()).backward()
    together = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for sample in batch:
        (sum(model([sample]).values()) / len(batch)).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            scale = parameter.grad.abs().max()
            torch.testing.assert_close(together[name], parameter.grad, atol=1e-4 * float(scale), rtol=0)


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("norm", ["BN", "GN"])
def test_norms_that_learn_see_no_padding(norm, checkpointed):
    """Two images of one size, alone and in the corner of a larger canvas: losses, gradients, statistics."""
    outcomes = []
    for canvas in ((64, 96), (96, 160)):
        model = (
            build(options={"norm": norm, "checkpoint_activations": checkpointed}, norm=norm).train().double()
        )
        images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)).double()
        padded = F.pad(images, (0, canvas[1] - 96, 0, canvas[0] - 64), value=7.0)
        model.extents.set([(64, 96)] * 2, canvas)
        logits, sides, borders = model._compute(padded)
        parts = [part[..., :16, :24] for part in (logits, borders)]
        sum(part.square().mean() for part in parts).backward()
        gradient = model.backbone.conv1.weight.grad
        statistics = [buffer for name, buffer in model.named_buffers() if "running" in name]
        outcomes.append([*parts, gradient / gradient.abs().max(), *statistics])
    for alone, padded in zip(*outcomes, strict=True):
        torch.testing.assert_close(padded, alone, atol=1e-9, rtol=1e-9)
    assert (len(outcomes[0]) > 60) == (norm == "BN")


@pytest.mark.parametrize("edge", [0.0, 0.5])
@pytest.mark.parametrize("side", [0.0, 0.7])
@pytest.mark.parametrize("arch", DECODERS)
def test_every_parameter_learns(arch, side, edge):
    model = build(arch=arch, side_weight=side, edge_weight=edge, norm="BN").train()
    losses = model(list(samples()))
    wanted = {"loss_saliency": 1, "loss_side": side, "loss_edge": edge}
    assert set(losses) == {name for name, weight in wanted.items() if weight}
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().any()] == []


def test_weights_scale_the_losses():
    batch = list(samples())
    with torch.no_grad():
        one = build(losses={"bce": 1.0}, side_weight=1.0, edge_weight=1.0).eval().image_losses(batch)
        two = build(losses={"bce": 2.0}, side_weight=3.0, edge_weight=4.0).eval().image_losses(batch)
    for name, factor in (("loss_saliency", 2), ("loss_side", 6), ("loss_edge", 4)):
        torch.testing.assert_close(two[name], factor * one[name])


def test_maps_are_probabilities_of_the_original_size():
    model, (sample,) = build().eval(), samples(((64, 96),))
    with torch.no_grad():
        (prediction,) = model([sample])
    assert prediction["saliency"].shape == (77, 192)
    assert prediction["saliency"].dtype == torch.float32
    assert 0 <= prediction["saliency"].min() <= prediction["saliency"].max() <= 1


@pytest.mark.parametrize("size", [320, 352, 384])
def test_a_network_that_is_sure_gives_no_more_than_one(size):
    """The weights of an antialiased resize add up to slightly more than one."""
    model, (sample,) = build().eval(), samples(((size, size),))
    model.decoder.head.weight.data.zero_()
    model.decoder.head.bias.data.fill_(30)
    (prediction,) = model([{**sample, "original_height": 300, "original_width": 267}])
    assert prediction["saliency"].max() == 1


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (31, 2), (513, 33)])
def test_any_size_is_taken_alone_and_in_company(size):
    model = build().eval()
    batch = list(samples((size, (64, 64))))
    assert_padding_changes_nothing(model, batch)


@pytest.mark.parametrize("bins", BINS)
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 7), (10, 13), (32, 17)])
def test_means_of_cells_are_those_of_torch(size, bins):
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    expected = F.adaptive_avg_pool2d(x, bins)
    torch.testing.assert_close(cell_means(x, (bins, bins)), expected)
    weights = torch.randn_like(expected)
    gradients = [torch.autograd.grad((y * weights).sum(), x) for y in (cell_means(x, (bins, bins)), expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("size", [(40, 1), (1, 40), (1, 1), (7, 5), (40, 60)])
def test_maps_of_any_size_are_resized_as_pillow_does(size):
    x = torch.rand(20, 30)
    expected = Image.fromarray(x.numpy()).resize(size[::-1], Image.Resampling.BILINEAR)
    torch.testing.assert_close(resized(x[None, None], size)[0, 0], torch.from_numpy(np.array(expected)))


@pytest.mark.parametrize("channels", [2, 4, 12, 64])
def test_few_channels_and_pixels_are_enough_for_group_norm(channels):
    model, batch = build(channels=channels), list(samples(((20, 20),)))
    assert torch.isfinite(model.eval()(batch)[0]["saliency"]).all()


def test_bfloat16_is_near_full_precision():
    model, batch = build().eval(), list(samples())
    with torch.no_grad():
        exact = model(batch)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(batch)
    for one, other in zip(exact, rounded, strict=True):
        assert other["saliency"].dtype == torch.float32
        assert (one["saliency"] - other["saliency"]).abs().max() < 0.02


@pytest.mark.parametrize(
    ("name", "words"), [("res2next29_6c_24w_4s", "stride 4"), ("resnet49", "unknown backbone")]
)
def test_a_backbone_that_is_too_small_or_unknown_is_refused(name, words):
    with pytest.raises(ConfigError, match=words):
        build_saliency_model(backbone={"name": name})
