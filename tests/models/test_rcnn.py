"""R-CNNs behind the contract: the empty case first, then against detectron2's own mapper and shapes."""

import copy
from operator import attrgetter

import pytest
import torch
import torch.nn.functional as F
from detectron2 import model_zoo
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from networks import TINY, every_network
from small_rcnn import sample

from res2net_dense.config.detection import MaskRCNNConfig
from res2net_dense.errors import ConfigError
from res2net_dense.models import detections, detector
from res2net_dense.models.detection_config import FPN_RCNN, SETTINGS, cascade, make_config, owned
from res2net_dense.models.detector import to_detectron2
from res2net_dense.models.rcnn import build_rcnn
from res2net_dense.models.tile_detections import dense_masks

SMALL = {
    "anchor_sizes": (8, 16, 32, 64, 128), "fpn_channels": 32, "norm": "GN",
    "box_head_dim": 32, "mask_head_convs": 1,
    "mask_head_dim": 32, "rpn_pre_nms_train": 100, "rpn_post_nms_train": 50, "rpn_pre_nms_test": 50,
    "rpn_post_nms_test": 20, "rpn_batch": 32, "roi_batch": 16,
}  # fmt: skip


@pytest.mark.parametrize("cascade", [None, (0.5, 0.6, 0.7)])
@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("objects", [(0,), (0, 2), (3, 1)])
def test_losses_are_finite_with_and_without_objects(mask, objects, cascade):
    model = build_rcnn(backbone={"name": TINY}, num_classes=2, mask=mask, cascade_ious=cascade, **SMALL)
    losses = model([sample(count) for count in objects])
    stages = [f"_stage{stage}" for stage in range(len(cascade))] if cascade else [""]
    names = {f"{name}{stage}" for name in ("loss_cls", "loss_box_reg") for stage in stages}
    assert set(losses) == names | {"loss_rpn_cls", "loss_rpn_loc"} | ({"loss_mask"} if mask else set())
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("cascade", [None, (0.5, 0.6, 0.7)])
@pytest.mark.parametrize("mask", [True, False])
def test_predictions_are_at_the_original_size(mask, cascade):
    settings = {"mask": mask, "cascade_ious": cascade, "score_threshold": 0.0}
    model = build_rcnn(backbone={"name": TINY}, num_classes=2, **settings, **SMALL)
    with torch.no_grad():
        predictions = model.eval()([sample(), sample(height=32, width=32)])
    assert len(predictions) == 2
    for prediction, (height, width) in zip(predictions, [(128, 192), (64, 64)], strict=True):
        count = len(prediction["scores"])
        assert count > 0
        assert prediction["boxes"].shape == (count, 4)
        assert prediction["boxes"][:, 2].max() <= width
        assert prediction["boxes"][:, 3].max() <= height
        assert set(prediction["labels"].tolist()) <= {0, 1}
        assert ("masks" in prediction) == mask
        if mask:
            assert prediction["masks"].shape == (count, height, width)
            assert prediction["masks"].dtype == torch.bool


def test_masks_that_would_fill_the_memory_are_parts(monkeypatch):
    model = build_rcnn(backbone={"name": TINY}, num_classes=2, score_threshold=0.0, **SMALL).eval()
    one = sample()
    with torch.no_grad():
        (whole,) = model([one])
        for module in (detector, detections):
            monkeypatch.setattr(module, "DENSE_MASK_BYTES", 1000)
        (parted,) = model([one])
    assert whole["masks"].any()
    assert torch.equal(dense_masks(parted.pop("mask_parts"), 128, 192), whole.pop("masks"))
    assert all(torch.equal(parted[name], whole[name]) for name in ("boxes", "labels", "scores"))


def test_no_detection_is_a_prediction_too():
    model = build_rcnn(backbone={"name": TINY}, num_classes=2, score_threshold=1.0, **SMALL).eval()
    with torch.no_grad():
        (prediction,) = model([sample(0)])
    assert prediction["boxes"].shape == (0, 4)
    assert prediction["masks"].shape == (0, 128, 192)


@every_network()
def test_every_backbone_feeds_it(name):
    if "next29" in name:  # three stages, for small images
        with pytest.raises(ConfigError, match="res5.*allowed: stem, res2, res3, res4"):
            build_rcnn(backbone={"name": name}, num_classes=2, **SMALL)
        return
    with torch.device("meta"):
        model = build_rcnn(backbone={"name": name}, num_classes=2, **SMALL)
    assert model.backbone.size_divisibility == 32
    assert set(model.backbone.bottom_up.output_shape()) == {"res2", "res3", "res4", "res5"}


def test_masks_reach_detectron2_in_the_form_they_came():
    polygons = sample()
    bitmap = sample(masks=torch.ones(1, 64, 96, dtype=torch.bool))
    kinds = [
        type(to_detectron2(s, with_targets=True, device=torch.device("cpu"))["instances"].gt_masks)
        for s in (polygons, bitmap)
    ]
    assert kinds == [PolygonMasks, BitMasks]


def test_half_precision_does_not_move_boxes():
    """Features of a ramp, pooled under autocast: a box rounded to half precision reads a different place."""
    model = build_rcnn(backbone={"name": TINY}, num_classes=2, **SMALL)
    ramp = torch.arange(512.0).expand(1, 1, 512, 512)
    box = Boxes(torch.tensor([[1061.0, 1061.0, 1064.0, 1064.0]]))  # bfloat16 knows 1056, 1064, ...
    pooler = model.roi_heads.box_pooler
    features = [ramp[:, :, :: 2**level, :: 2**level] for level in range(4)]
    with torch.autocast("cpu", torch.bfloat16):
        half = pooler([feature.bfloat16() for feature in features], [box])
    full = pooler([feature.bfloat16().float() for feature in features], [box])
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full)


def test_settings_have_the_defaults_of_the_schema():
    fields, cfg = MaskRCNNConfig.model_fields, make_config(FPN_RCNN, {}, SETTINGS)
    for name in SETTINGS.keys() - {"num_classes"}:
        assert fields[name].default == attrgetter(SETTINGS[name])(cfg), name


@pytest.mark.parametrize("key", owned(SETTINGS))
def test_a_key_of_ours_is_refused_with_its_name(key):
    with pytest.raises(ConfigError, match="remove it here"):
        build_rcnn(backbone={"name": TINY}, num_classes=2, detectron2={key: 1})


@pytest.mark.parametrize(("key", "value", "words"), [
    ("MODEL", {"ROI_HEADS": {"POSITIVE_FRACTION": 0.5}}, "MODEL is a section.*MODEL.ROI_HEADS.POSITIVE"),
    ("MODEL.ROI_HEADS", {"POSITIVE_FRACTION": 0.5}, "in full, such as MODEL.ROI_HEADS.POSITIVE_FRACTION"),
    ("TEST.AUG", {}, "TEST.AUG is a section; write its keys in full, such as TEST.AUG.ENABLED"),
    ("MODEL.RPN.BBOX_REG_LOSS_TYPE", "l2", "should be one of smooth_l1, giou"),
    ("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "L1", "should be one of smooth_l1, giou"),
    ("MODEL.RPN.BBOX_REG_WEIGHTS", [1.0, 2.0], "takes four numbers above 0"),
    ("MODEL.PROPOSAL_GENERATOR.NAME", "RRPN", "is for rotated boxes"),
    ("MODEL.ANCHOR_GENERATOR.NAME", "RotatedAnchorGenerator", "is for rotated boxes"),
    ("MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals", "is for proposals of another"),
])  # fmt: skip
def test_what_detectron2_would_notice_too_late_or_not_at_all(key, value, words):
    with pytest.raises(ConfigError, match=words):
        build_rcnn(backbone={"name": TINY}, num_classes=2, detectron2={key: value}, **SMALL)


def test_detectron2_keys_pass_through_or_are_refused():
    model = build_rcnn(
        backbone={"name": TINY},
        num_classes=2,
        detectron2={"MODEL.RPN.BBOX_REG_LOSS_TYPE": "giou", "MODEL.ROI_HEADS.IOU_THRESHOLDS": [0.6]},
        **SMALL,
    )
    assert model.proposal_generator.box_reg_loss_type == "giou"
    for settings in (
        {"MODEL.NOPE": 1},
        {"MODEL.RPN.NMS_THRESH": "much"},
        {"SOLVER.BASE_LR": 0.1},
        {"MODEL.RESNETS.DEPTH": 101},
        {"MODEL.ROI_HEADS.NAME": "Nope"},
    ):
        with pytest.raises(ConfigError, match=r"model\.detectron2"):
            build_rcnn(backbone={"name": TINY}, num_classes=2, detectron2=settings, **SMALL)


@pytest.mark.parametrize(
    "backbone",
    [
        {"name": "res2net_dla60"},
        {"name": TINY, "se": True, "dcn_stages": ["res4", "res5"]},
        {"name": TINY, "stage_split": "strided", "pool_padding": "ignored", "norm_eps": 1e-3},
    ],
    ids=str,
)
def test_every_parameter_of_every_kind_of_backbone_learns(backbone):
    """An unused parameter would stop DDP."""
    model = build_rcnn(backbone=backbone, num_classes=2, **SMALL)
    sum(model([sample(), sample(2)]).values()).backward()
    network = model.backbone.bottom_up.net
    assert [key for key, p in model.named_parameters() if p.grad is None] == []
    assert any("conv_offset" in key for key in network.state_dict()) == ("dcn_stages" in backbone)
    built = {key: value for key, value in backbone.items() if key in network.semantics}
    assert built.items() <= network.semantics.items()


def classified(classes=3, seed=0):
    """Scores and regressions of 40 boxes, mostly of the background, and what they are."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes + 1, (40,), generator=generator)
    labels[:20] = classes
    proposals = Instances((64, 64))
    proposals.proposal_boxes = proposals.gt_boxes = Boxes(torch.tensor([[4.0, 4, 20, 20]] * 40))
    proposals.gt_classes = labels
    scores = torch.randn(40, classes + 1, generator=generator).requires_grad_()
    return scores, torch.zeros(40, 4 * classes), proposals


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.5, 4.0, 0.0]])
def test_class_weights_are_those_of_pytorchs_cross_entropy(weights):
    """The background has 1, and nothing else changes."""
    plain, model = (
        build_rcnn(backbone={"name": TINY}, num_classes=3, class_weights=one, **SMALL)
        for one in (None, weights)
    )
    assert model.state_dict().keys() == plain.state_dict().keys()
    scores, deltas, proposals = classified()
    with EventStorage():
        losses = model.roi_heads.box_predictor.losses((scores, deltas), [proposals])
        before = plain.roi_heads.box_predictor.losses((scores, deltas), [proposals])
    assert losses["loss_box_reg"] == before["loss_box_reg"]
    expected = F.cross_entropy(scores, proposals.gt_classes, torch.tensor([*weights, 1.0]))
    torch.testing.assert_close(losses["loss_cls"], expected)
    gradients = [torch.autograd.grad(loss, scores)[0] for loss in (losses["loss_cls"], expected)]
    torch.testing.assert_close(*gradients)
    if weights == [1.0] * 3:
        torch.testing.assert_close(losses["loss_cls"], before["loss_cls"])


def test_a_copy_of_a_model_with_class_weights_has_layers_of_its_own():
    model = build_rcnn(backbone={"name": TINY}, num_classes=2, class_weights=[1.0, 2.0], **SMALL)
    twin = copy.deepcopy(model)
    torch.manual_seed(0)
    losses = twin([sample(2)])
    sum(losses.values()).backward()
    assert twin.roi_heads.box_predictor.cls_score.weight.grad is not None
    assert model.roi_heads.box_predictor.cls_score.weight.grad is None
    empty = model([sample(0)])
    assert all(torch.isfinite(loss) for loss in empty.values())


def test_a_cascade_is_that_of_detectron2s_model_zoo():
    theirs = model_zoo.get_config("Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml")
    for key, value in cascade((0.5, 0.6, 0.7)).items():
        found = attrgetter(key)(theirs)
        assert [*map(list, found)] == value if "WEIGHTS" in key else found == value or [*found] == value, key


@pytest.mark.parametrize("classes", [1, 2])
def test_boxes_of_a_cascade_belong_to_no_class(classes):
    model = build_rcnn(backbone={"name": TINY}, num_classes=classes, cascade_ious=(0.5, 0.7), **SMALL)
    heads = [f"roi_heads.box_predictor.{stage}.cls_score" for stage in (0, 1)]
    assert [*model.class_layers] == [*heads, "roi_heads.mask_head.predictor"]
    plain = build_rcnn(backbone={"name": TINY}, num_classes=classes, mask=False, **SMALL)
    assert [name.rsplit(".")[-1] for name in plain.class_layers] == ["cls_score", "bbox_pred"]


def test_every_box_classifier_of_a_cascade_has_the_weights():
    settings = {"class_weights": [1.0, 2.0], "cascade_ious": (0.5, 0.6, 0.7)}
    model = build_rcnn(backbone={"name": TINY}, num_classes=2, **settings, **SMALL)
    found = [value.tolist() for key, value in model.named_buffers() if key.endswith("class_weights")]
    assert found == [[1.0, 2.0, 1.0]] * 3


@pytest.mark.parametrize(
    ("weights", "keys", "words"),
    [
        ([1.0], {}, "1 numbers; it takes one for each of 2 classes"),
        ([0.0, 0.0], {}, "above 0"),
        ([1.0, 2.0], {"MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": True}, "softmax"),
    ],
)
def test_class_weights_that_cannot_act_are_refused(weights, keys, words):
    with pytest.raises(ConfigError, match=words):
        build_rcnn(backbone={"name": TINY}, num_classes=2, class_weights=weights, detectron2=keys, **SMALL)


@pytest.mark.parametrize("key", ["DATALOADER.SAMPLER_TRAIN", "DATALOADER.REPEAT_THRESHOLD"])
def test_detectron2s_samplers_have_names_of_ours(key):
    with pytest.raises(ConfigError, match=rf"{key} is set by data\.(sampling|repeat_threshold)"):
        build_rcnn(backbone={"name": TINY}, num_classes=2, detectron2={key: "x"}, **SMALL)
