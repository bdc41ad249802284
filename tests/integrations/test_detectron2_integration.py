"""Our backbones inside detectron2's own configs and trainer."""

import importlib
import json
import re

import pytest
import torch
from comparison import difference
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import DefaultTrainer
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, ROI_HEADS_REGISTRY, build_backbone, build_model
from networks import TINY
from torch import nn

import res2net_dense
from res2net_dense.errors import ConfigError
from res2net_dense.integrations import detectron2 as integration


def config(tmp_path, backbone="build_res2net_fpn_backbone_dense"):
    cfg = get_cfg()
    integration.add_res2net_config(cfg)
    cfg.INPUT.FORMAT = "RGB"
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = backbone
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RES2NET.NORM = "BN"
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.FPN.NORM = "GN"
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8], [16], [32], [64], [128]]
    cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN, cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 200, 50
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC, cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 1, 64
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 7
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 1
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    return cfg


def test_registering_twice_is_harmless():
    importlib.reload(integration)
    for builder in integration._BUILDERS:
        assert builder.__name__ in BACKBONE_REGISTRY
    assert "Res2NetRes5ROIHeads" in ROI_HEADS_REGISTRY


def test_a_config_without_our_node_is_told_what_to_call():
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_res2net_backbone_dense"
    with pytest.raises(ConfigError, match="add_res2net_config"):
        build_backbone(cfg)


def test_the_plain_backbone_equals_ours(tmp_path):
    cfg = config(tmp_path, "build_res2net_backbone_dense")
    cfg.MODEL.RES2NET.OUT_FEATURES = ["res3", "res4"]
    theirs = build_backbone(cfg).eval()
    assert theirs.output_shape() == {
        "res3": ShapeSpec(channels=512, stride=8),
        "res4": ShapeSpec(channels=1024, stride=16),
    }
    ours = res2net_dense.create_backbone("res2net50_26w_4s", out_features=("res3", "res4")).eval()
    ours.load_state_dict(theirs.net.state_dict())
    x = torch.randn(1, 3, 64, 96)
    for a, b in zip(theirs(x).values(), ours(x).values(), strict=True):
        assert a.equal(b)


@pytest.mark.parametrize("channels", [1, 4])
def test_weights_are_adapted_to_the_channels_of_the_input(tmp_path, channels, caplog):
    name = "res2net50_18w_4s"
    torch.save(res2net_dense.create_classifier(name, 2).state_dict(), tmp_path / "w.pth")
    cfg = config(tmp_path, "build_res2net_backbone_dense")
    cfg.MODEL.RES2NET.NAME, cfg.MODEL.RES2NET.WEIGHTS = name, str(tmp_path / "w.pth")
    cfg.MODEL.RES2NET.OUT_FEATURES = ["res2"]
    with caplog.at_level("INFO", "res2net_dense"):
        theirs = build_backbone(cfg, ShapeSpec(channels=channels)).net
    ours = res2net_dense.create_backbone(
        name, weights=tmp_path / "w.pth", in_channels=channels, out_features=["res2"]
    )
    assert all(value.equal(ours.state_dict()[key]) for key, value in theirs.state_dict().items())
    assert f"adapted from 3 to {channels} input channels" in caplog.text


def plain(name=TINY, backbone="build_res2net_backbone_dense", res2net=None, **resnets):
    """A config of a backbone without heads; `MODEL.RES2NET` has `res2net`, `MODEL.RESNETS` the others."""
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = backbone.replace("res2net", "resnet").removesuffix("_dense")
    integration.use_res2net(cfg, name)
    cfg.MODEL.DEVICE, cfg.MODEL.BACKBONE.FREEZE_AT = "cpu", 0
    assert backbone == cfg.MODEL.BACKBONE.NAME
    for node, values in ((cfg.MODEL.RES2NET, res2net or {}), (cfg.MODEL.RESNETS, resnets)):
        for key, value in values.items():
            node[key] = value
    return cfg


def network(name=TINY, res2net=None, **resnets):
    resnets.setdefault("OUT_FEATURES", ["res5"])
    return build_backbone(plain(name, res2net=res2net, **resnets)).net


def detectron2s_names(state):
    """The tensors of a `resnet50` of ours under detectron2's names."""
    renamed = {}
    for key, value in state.items():
        key = re.sub(r"^(conv1|bn1)", r"stem.\1", key)
        key = re.sub(r"layer(\d)", lambda found: f"res{int(found[1]) + 1}", key)
        key = key.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        renamed[re.sub(r"bn(\d)", r"conv\1.norm", key)] = value
    return renamed


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("stride_in_1x1", [False, True])
@pytest.mark.parametrize("norm", ["FrozenBN", "GN"])
def test_a_resnet_of_these_keys_is_detectron2s_own(dilation, stride_in_1x1, norm):
    keys = {"RES5_DILATION": dilation, "NORM": norm, "OUT_FEATURES": ["res4", "res5"]}
    res2net = {"STRIDE_IN_1X1": True} if stride_in_1x1 else None
    cfg = plain("resnet50", res2net=res2net, STRIDE_IN_1X1=stride_in_1x1, **keys)
    ours = build_backbone(cfg).eval()
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    theirs = build_backbone(cfg).eval()
    theirs.load_state_dict(detectron2s_names(ours.net.state_dict()))
    assert ours.output_shape() == theirs.output_shape()
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for mine, reference in zip(ours(x).values(), theirs(x).values(), strict=True):
            assert difference(mine, reference) <= 1e-5


@pytest.mark.parametrize(
    ("norm", "kind"),
    [
        ("BN", nn.BatchNorm2d),
        ("SyncBN", nn.SyncBatchNorm),
        ("nnSyncBN", nn.SyncBatchNorm),
        ("GN", nn.GroupNorm),
    ],
)
def test_the_norm_of_a_config_is_that_of_the_network(norm, kind):
    assert type(network(NORM=norm).bn1) is kind


def test_the_deformable_stages_of_a_config_are_those_of_the_network(caplog):
    net = network(DEFORM_ON_PER_STAGE=[False, True, False, True], DEFORM_MODULATED=True)
    assert {key.split(".")[0] for key in net.state_dict() if "conv_offset" in key} == {"layer2", "layer4"}
    assert "DEFORM" not in caplog.text
    network(DEFORM_ON_PER_STAGE=[False, True, False, True])
    assert "MODEL.RESNETS.DEFORM_MODULATED is False; test_res2net has DCNv2" in caplog.text


def test_a_dla_dilates_too():
    with torch.device("meta"):
        net = network("res2net_dla60", RES5_DILATION=2, STEM_OUT_CHANNELS=32, RES2_OUT_CHANNELS=128)
    assert net.out_strides == {"res5": 16}


def test_output_stride_and_dilation_are_keys_of_our_own_node():
    net = network(res2net={"OUTPUT_STRIDE": 8, "DILATE_FIRST": "full"}, OUT_FEATURES=["res3", "res5"])
    assert net.out_strides == {"res3": 8, "res5": 8}
    assert net.layer3[0].convs[0].dilation == (2, 2)


def test_the_plain_builder_builds_no_stage_that_the_heads_do_not_take():
    net = build_backbone(plain()).net  # C4
    assert list(net.out_channels) == ["res4"]
    assert not hasattr(net, "layer4")
    net = build_backbone(plain(res2net={"OUT_FEATURES": ["res2", "res3"]}, OUT_FEATURES=["res5"])).net
    assert list(net.out_channels) == ["res2", "res3"]
    assert not hasattr(net, "layer3")


def test_a_depth_chooses_among_names():
    with torch.device("meta"):
        for name, depth in (("res2net101_26w_4s", 101), ("res2next50", 50), ("res2net200_v1b_26w_4s", 200)):
            network(name, DEPTH=depth)
        network("res2net101_26w_4s")  # detectron2's default of 50 counts as not set


@pytest.mark.parametrize(
    ("name", "keys", "words"),
    [
        (
            "res2net50_26w_4s",
            {"DEPTH": 101},
            r"DEPTH is 101, .* \(res2net101_26w_4s, .*\), or DEPTH back to 50",
        ),
        ("res2net_dla60", {"DEPTH": 34}, r"DEPTH is 34, .*\(there is none\)"),
        (TINY, {"NORM": "LN"}, "MODEL.RESNETS.NORM is 'LN'; allowed: BN, FrozenBN, SyncBN"),
        (TINY, {"RES5_DILATION": 4}, "MODEL.RESNETS.RES5_DILATION is 4; allowed: 1, 2"),
        (
            TINY,
            {"DEFORM_ON_PER_STAGE": [True] * 4, "DEFORM_NUM_GROUPS": 2},
            "DEFORM_NUM_GROUPS is 2; allowed: 1",
        ),
        (
            "res2net_dla60",
            {"DEFORM_ON_PER_STAGE": [True] * 4},
            "asks for dcn_stages, which res2net_dla60 does not",
        ),
        (TINY, {"NUM_GROUPS": 32}, "NUM_GROUPS is 32, but test_res2net has 1: .* set the key back to 1"),
        (TINY, {"WIDTH_PER_GROUP": 8}, "WIDTH_PER_GROUP is 8, but test_res2net has 32"),
        (TINY, {"STEM_OUT_CHANNELS": 32}, "STEM_OUT_CHANNELS is 32, but test_res2net has 4"),
        (TINY, {"RES2_OUT_CHANNELS": 64}, "RES2_OUT_CHANNELS is 64, but test_res2net has 16"),
        (TINY, {"OUT_FEATURES": ["res6"]}, "out_features is 'res6'"),
    ],
)
def test_keys_of_a_resnet_that_the_network_cannot_follow_are_refused_by_name(name, keys, words):
    with pytest.raises(ConfigError, match=words) as caught:
        network(name, **keys)
    assert "\n" not in str(caught.value)


def test_our_keys_go_before_those_of_the_resnet(caplog):
    net = network(res2net={"NORM": "BN"}, NORM="GN", RES4_DILATION=2)
    assert type(net.bn1) is nn.BatchNorm2d
    assert "MODEL.RES2NET.NORM goes before MODEL.RESNETS: BN" in caplog.text
    assert "MODEL.RESNETS.RES4_DILATION (2) has no effect on test_res2net" in caplog.text


def test_an_fpn_on_a_dilated_network_is_refused():
    features = ["res2", "res3", "res4", "res5"]
    cfg = plain(backbone="build_res2net_fpn_backbone_dense", RES5_DILATION=2, OUT_FEATURES=features)
    with pytest.raises(ConfigError, match="strides that double.* are 4, 8, 16, 16"):
        build_backbone(cfg)


def test_input_and_weights_that_do_not_fit_are_warned_about(caplog):
    cfg = get_cfg()
    integration.add_res2net_config(cfg)
    cfg.MODEL.RES2NET.NAME, cfg.MODEL.BACKBONE.NAME = TINY, "build_res2net_backbone_dense"
    build_backbone(cfg)
    assert "are BGR, [103.53, 116.28, 123.675], [1.0, 1.0, 1.0]; the published weights" in caplog.text
    assert "MODEL.BACKBONE.FREEZE_AT is 2, and the layers that it freezes have random weights" in caplog.text
    cfg.MODEL.WEIGHTS = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
    build_backbone(cfg)
    assert "R-50.pkl, whose tensors are a ResNet's" in caplog.text
    caplog.clear()
    build_backbone(plain())
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("backbone", "name", "words"),
    [
        ("build_regnet_backbone", TINY, "is build_regnet_backbone; a Res2Net replaces build_resnet_backbone"),
        ("build_resnet_backbone", "res2net50", "unknown backbone 'res2net50'"),
    ],
)
def test_a_config_that_cannot_take_the_network_is_refused(backbone, name, words):
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = backbone
    with pytest.raises(ConfigError, match=words):
        integration.use_res2net(cfg, name)


@pytest.fixture
def registered(toy):
    name = "toy_of_the_integration_test"
    register_coco_instances(name, {}, str(toy / "coco/annotations/train.json"), str(toy / "coco/train"))
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_detectron2s_own_trainer_runs(tmp_path, registered):
    cfg = config(tmp_path)
    cfg.MODEL.RES2NET.NAME = TINY
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (registered,), ()
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (64,), 64
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR = 2, 2, 1e-4
    trainer = DefaultTrainer(cfg)
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    trainer.resume_or_load(resume=False)
    trainer.train()
    lines = [json.loads(line) for line in (tmp_path / "output/metrics.json").read_text().splitlines()]
    assert {"loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc"} <= set(lines[-1])
    after = trainer.model.state_dict()
    assert not before["backbone.bottom_up.net.conv1.weight"].equal(
        after["backbone.bottom_up.net.conv1.weight"]
    )

    again = build_model(cfg)
    DetectionCheckpointer(again).load(str(tmp_path / "output/model_final.pth"))
    assert all(value.equal(after[key]) for key, value in again.state_dict().items())


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_a_traced_backbone_is_scripted():
    backbone, x = (
        integration.Res2NetBackbone(res2net_dense.create_backbone(TINY)).eval(),
        torch.randn(1, 3, 64, 96),
    )
    scripted = torch.jit.script(torch.fx.symbolic_trace(backbone))
    torch.testing.assert_close(scripted(x), backbone(x))


def test_use_res2net_keeps_the_channels_of_other_images_than_rgb():
    cfg = get_cfg()
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [10.0, 20.0, 30.0, 40.0], [1.0, 2.0, 3.0, 4.0]
    integration.use_res2net(cfg, TINY)
    assert list(cfg.MODEL.PIXEL_MEAN) == [10, 20, 30, 40]
    assert build_backbone(cfg).net.conv1.weight.shape[1] == 4
