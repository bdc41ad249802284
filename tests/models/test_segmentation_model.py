"""Segmentation: the contract, the loss, batches of one, every architecture, equality with smp's networks."""

import inspect

import pytest
import segmentation_models_pytorch as smp
import torch
from networks import TINY
from torch import nn

from res2net_dense.backbones import create_backbone
from res2net_dense.config.semantic_segmentation import SegmenterConfig
from res2net_dense.errors import CheckpointError, ConfigError
from res2net_dense.models import segmentation
from res2net_dense.models.norms import (
    SingleValueSafeBatchNorm2d,
    SingleValueSafeSyncBatchNorm,
    warn_of_single_values,
)
from res2net_dense.models.segmentation import OWNED, build_segmentation_model
from res2net_dense.models.segmentation_losses import LOSSES

ARCHITECTURES = SegmenterConfig.model_fields["arch"].annotation.__args__


def build(arch="deeplabv3plus", num_classes=4, **settings):
    torch.manual_seed(0)
    backbone = {"name": TINY, **settings.pop("backbone", {})}
    return build_segmentation_model(backbone=backbone, arch=arch, num_classes=num_classes, **settings)


def sample(height=64, width=64, *, seed=0, original=None, labels=4):
    generator = torch.Generator().manual_seed(seed)
    sem_seg = torch.randint(0, labels, (height, width), generator=generator)
    sem_seg[:3] = 255
    original = original or (height, width)
    return {
        "image": torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8),
        "sem_seg": sem_seg,
        "original_height": original[0],
        "original_width": original[1],
        "image_id": seed,
        "file_name": f"{seed}.png",
    }


@pytest.fixture(scope="module")
def deeplab():
    """One DeepLabv3+ for tests that do not change it."""
    return build().eval()


def test_predictions_are_labels_at_the_original_size(deeplab):
    batch = [sample(64, 96, original=(50, 81)), sample(33, 47, seed=1), sample(1, 1, seed=2)]
    predictions = deeplab(batch)
    assert [tuple(p["sem_seg"].shape) for p in predictions] == [(50, 81), (33, 47), (1, 1)]
    for prediction in predictions:
        assert prediction["sem_seg"].dtype == torch.int64
        assert 0 <= prediction["sem_seg"].min() <= prediction["sem_seg"].max() < 4


def test_a_prediction_does_not_depend_on_its_neighbours(deeplab):
    first, second, third = sample(64, 96), sample(48, 80, seed=1), sample(64, 96, seed=2)
    together = deeplab([first, second, third])
    for one, prediction in zip((first, second, third), together, strict=True):
        assert torch.equal(deeplab([one])[0]["sem_seg"], prediction["sem_seg"])


@pytest.mark.parametrize("stride", [16, 8])
def test_logits_equal_smps_own_network(stride):
    """The same weights in smp's DeepLabv3+ with its own forward, at an odd multiple of 16."""
    model = build(output_stride=stride).eval()
    reference = smp.DeepLabV3Plus(
        f"r2d-{TINY}", encoder_weights=None, encoder_output_stride=stride, classes=4,
        decoder_atrous_rates=(6, 12, 18) if stride == 16 else (12, 24, 36),
    ).eval()  # fmt: skip
    state = {key.replace("backbone.", "encoder.", 1): value for key, value in model.state_dict().items()}
    reference.load_state_dict(state)
    images = torch.randn(2, 3, 48, 80)
    with torch.no_grad():
        torch.testing.assert_close(model.logits(images), reference(images), rtol=1e-5, atol=1e-6)


def test_rates_follow_the_output_stride():
    for stride, rates in ((16, (6, 12, 18)), (8, (12, 24, 36))):
        model = build(output_stride=stride)
        assert rates == tuple(conv[0][0].dilation[0] for conv in list(model.decoder.aspp[0].convs)[1:4])
    model = build(atrous_rates=(2, 4, 6))
    assert model.decoder.aspp[0].convs[1][0][0].dilation == (2, 2)


def test_each_loss_has_a_name_and_the_second_head_their_sum():
    model = build(losses={"cross_entropy": 0.5, "dice": 2.0}, aux_weight=0.4).train()
    batch = [sample(), sample(seed=1)]
    model.eval()  # neither norms nor dropout change between the calls
    losses = model.losses(batch)
    assert set(losses) == {"loss_sem_seg", "loss_dice", "loss_aux"}
    model.aux_weight = 1.0
    model.criterion.loss_weights = {"cross_entropy": 0.5}
    first = model.losses(batch)
    model.criterion.loss_weights = {"dice": 2.0}
    second = model.losses(batch)
    assert torch.equal(losses["loss_sem_seg"], first["loss_sem_seg"])
    assert torch.equal(losses["loss_dice"], second["loss_dice"])
    torch.testing.assert_close(losses["loss_aux"], 0.4 * (first["loss_aux"] + second["loss_aux"]))


def test_a_batch_without_a_labelled_pixel_has_no_loss():
    model = build(losses=dict.fromkeys(LOSSES, 1.0), aux_weight=0.4).train()
    batch = [sample(), sample(seed=1)]
    for one in batch:
        one["sem_seg"].fill_(255)
    losses = model(batch)
    sum(losses.values()).backward()
    assert all(loss == 0 for loss in losses.values())
    assert all(p.grad is None or bool((p.grad == 0).all()) for p in model.parameters())


def test_the_auxiliary_head_learns_and_is_not_needed_later():
    model = build(aux_weight=0.4).train()
    losses = model([sample(), sample(seed=1)])
    losses["loss_aux"].backward()
    assert all(p.grad is not None for p in model.aux_head.parameters())
    model.eval().aux_head = None
    assert model([sample()])[0]["sem_seg"].shape == (64, 64)


@pytest.mark.parametrize("norm", ["BN", "SyncBN"])
def test_one_image_a_step_neither_crashes_nor_poisons(norm, caplog):
    warn_of_single_values.cache_clear()
    model = build(norm=norm, backbone={"norm": norm}).train()
    pooled = model.decoder.aspp[0].convs[4][2]
    assert isinstance(
        pooled, {"BN": SingleValueSafeBatchNorm2d, "SyncBN": SingleValueSafeSyncBatchNorm}[norm]
    )
    for seed in range(3):
        losses = model([sample(seed=seed)])
        losses["loss_sem_seg"].backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)
    assert all(bool(torch.isfinite(b.float()).all()) for b in model.buffers())
    assert torch.equal(pooled.running_var, torch.ones_like(pooled.running_var))
    assert len([r for r in caplog.records if "one image at a time" in r.message]) == 1
    assert "train.batch_size" in caplog.text
    assert "model.norm=GN" in caplog.text
    # Two images are enough for it, and change its statistics.
    model([sample(), sample(seed=1)])
    assert not torch.equal(pooled.running_var, torch.ones_like(pooled.running_var))


def test_safe_norm_is_batch_norm_elsewhere():
    plain, safe = nn.BatchNorm2d(5), SingleValueSafeBatchNorm2d(5)
    x = torch.randn(2, 5, 1, 1)
    for mode in (True, False):
        torch.testing.assert_close(plain.train(mode)(x), safe.train(mode)(x), rtol=0, atol=0)
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), safe.state_dict().values()))  # noqa: B905


def test_a_single_pixel_of_the_last_map_is_reported():
    model = build("unet", backbone={"norm": "BN"}).train()
    with pytest.raises(ConfigError, match=r"train\.batch_size"):
        model([sample(32, 32)])


@pytest.mark.parametrize("norm", ["GN", "SyncBN"])
def test_the_norm_of_what_is_built_on_the_backbone(norm):
    model = build(norm=norm, aux_weight=0.4)
    kind = {"GN": nn.GroupNorm, "SyncBN": nn.SyncBatchNorm}[norm]
    for part in (model.decoder, model.segmentation_head, model.aux_head):
        assert not any(isinstance(m, nn.BatchNorm2d) for m in part.modules())
    assert any(isinstance(m, kind) for m in model.decoder.modules())
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.backbone.modules())


def test_the_config_knows_every_architecture_of_smp():
    assert set(ARCHITECTURES) == set(smp.MODEL_ARCHITECTURES_MAPPING) - {"dpt"}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_learns_and_predicts(arch):
    """From images of different sizes too."""
    model = build(arch, norm="GN", aux_weight=0.4, num_classes=3).train()
    losses = model([sample(64, 96, labels=3), sample(50, 81, seed=1, labels=3)])
    assert set(losses) == {"loss_sem_seg", "loss_aux"}
    sum(losses.values()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert not without  # a parameter that never learns stops DDP
    prediction = model.eval()([sample(50, 81)])[0]
    assert prediction["sem_seg"].shape == (50, 81)


def test_smp_takes_no_argument_that_is_owned_or_missed():
    known = {name for arch in ARCHITECTURES for name in inspect.signature(
        smp.MODEL_ARCHITECTURES_MAPPING[arch].__init__).parameters}  # fmt: skip
    assert set(OWNED) <= known


def test_further_arguments_reach_smp():
    assert build(smp={"decoder_channels": 64}).segmentation_head[0].in_channels == 64


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"smp": {"decoder_chanels": 3}}, ["decoder_chanels", "decoder_channels"]),
        ({"smp": {"classes": 3}}, ["classes", "model.num_classes"]),
        ({"smp": {"decoder_channels": "many"}}, ["deeplabv3plus", "model.smp"]),
        ({"arch": "unet", "smp": {"decoder_interpolation": "zzz"}}, ["unet", "zzz", "model.smp"]),
        ({"output_stride": 32}, ["output_stride", "16 or 8"]),
        ({"arch": "unet", "output_stride": 16}, ["output_stride", "32"]),
        ({"arch": "unet", "atrous_rates": [1, 2, 3]}, ["atrous_rates", "unet"]),
        ({"class_weights": [1.0]}, ["class_weights", "4 classes"]),
        ({"class_weights": [0.0] * 4}, ["class_weights", "above 0"]),
        ({"losses": {"dise": 1.0}}, ["model.losses", "'dise'", "did you mean dice?"]),
        ({"backbone": {"name": "res2net51_26w_4s"}}, ["did you mean", "res2net50_26w_4s"]),
        ({"backbone": {"name": "res2next29_6c_24w_4s"}}, ["res2next29_6c_24w_4s", "small images"]),
    ],
)
def test_settings_without_meaning_are_refused_in_one_line(settings, words):
    with pytest.raises(ConfigError) as error:
        build(**settings)
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_options_and_weights_of_the_backbone(tmp_path):
    torch.manual_seed(1)
    net = create_backbone(TINY)
    for value in net.state_dict().values():
        if value.is_floating_point():
            value.uniform_(0.1, 0.9)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    model = build(backbone={"weights": str(tmp_path / "net.pth"), "norm": "FrozenBN", "freeze_at": 2})
    state = model.backbone.state_dict()
    assert all(torch.equal(state[key], value) for key, value in net.state_dict().items() if key in state)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.backbone.modules())
    assert not any(p.requires_grad for p in model.backbone.layer1.parameters())
    torch.save({"layer1.0.conv1.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="other.pth"):
        build(backbone={"weights": str(tmp_path / "other.pth")})


def test_an_output_that_is_not_finite_is_reported(caplog):
    model = build().eval()
    model.segmentation_head[0].bias.data.fill_(float("nan"))
    model([sample(seed=3)])
    assert "3.png: the network's output is not finite" in caplog.text


def test_views_are_averaged(monkeypatch):
    """What the settings of evaluation name is what the inference is asked for."""
    asked = {}

    def record(network, images, **views):
        asked.update(views)
        return torch.zeros(len(images), 4, *images.shape[-2:])

    monkeypatch.setattr(segmentation, "class_probabilities", record)
    views = {"scales": [0.5, 1.0], "flip": True, "window": 64, "window_stride": 32}
    build(views=views).eval()([sample()])
    assert asked == {"divisor": 16, **views}


@pytest.mark.parametrize(
    ("size", "original", "window", "words"),
    [
        ((64, 64), (300, 200), 96, "sees it whole and has no effect"),
        ((64, 64), (300, 200), 48, "slides over that"),
        ((64, 64), (64, 64), 48, None),
        ((64, 64), (90, 90), 96, None),
        ((64, 64), (32, 32), 20, None),
    ],
)
def test_a_window_over_an_image_that_was_made_smaller_is_said_once(size, original, window, words, caplog):
    model = build(views={"window": window}).eval()
    for _ in range(2):
        model([sample(*size, original=original)])
    if words is None:
        assert not caplog.messages
    else:
        (message,) = caplog.messages
        assert "0.png: the image of 200 x 300 is first resized to 64 x 64" in message
        assert words in message
