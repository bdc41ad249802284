"""Our backbones inside detectron2's own configs and trainer."""

import importlib
import json

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import DefaultTrainer
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, build_backbone, build_model
from networks import TINY

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
    for name in ("build_res2net_backbone_dense", "build_res2net_fpn_backbone_dense"):
        assert name in BACKBONE_REGISTRY


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
