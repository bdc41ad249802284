"""RetinaNet behind the contract: the empty case first, then against detectron2's own."""

from operator import attrgetter

import pytest
import torch
from detectron2 import model_zoo
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch import retinanet
from detectron2.utils.events import EventStorage
from networks import TINY, every_network
from small_rcnn import sample

from res2net_dense.config.detection import RetinaNetConfig
from res2net_dense.engine.inference import mean_losses
from res2net_dense.errors import ConfigError
from res2net_dense.integrations.detectron2 import use_res2net
from res2net_dense.models.detection_config import RETINANET, RETINANET_SETTINGS, make_config
from res2net_dense.models.detector import to_detectron2
from res2net_dense.models.retinanet import build_retinanet
from res2net_dense.tasks.starting import Classes

SMALL = {"fpn_channels": 64, "head_convs": 1, "anchor_sizes": (8, 16, 32, 64, 128), "norm": "GN"}


def small(**settings):
    return build_retinanet(backbone={"name": TINY}, **{"num_classes": 2, **SMALL, **settings})


@pytest.mark.parametrize("objects", [(0,), (0, 2), (3, 1)])
def test_losses_are_finite_and_everything_learns(objects):
    model = small()
    losses = model([sample(count) for count in objects])
    assert set(losses) == {"loss_cls", "loss_box_reg"}
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert [key for key, p in model.named_parameters() if p.grad is None] == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_predictions_are_at_the_original_size():
    with torch.no_grad():
        predictions = small(score_threshold=0.0).eval()([sample(), sample(height=32, width=32)])
    for prediction, (height, width) in zip(predictions, [(128, 192), (64, 64)], strict=True):
        assert set(prediction) == {"boxes", "labels", "scores"}
        assert prediction["boxes"].shape == (len(prediction["scores"]), 4)
        assert 0 < len(prediction["scores"]) <= 100
        assert prediction["boxes"].min() >= 0
        assert prediction["boxes"][:, 2].max() <= width
        assert prediction["boxes"][:, 3].max() <= height
        assert set(prediction["labels"].tolist()) <= {0, 1}


def test_no_detection_is_a_prediction_too():
    with torch.no_grad():
        (prediction,) = small(score_threshold=1.0).eval()([sample(0)])
    assert prediction["boxes"].shape == (0, 4)


def test_it_is_detectron2s():
    """Built by its own config, with a backbone of ours: losses of three steps, and detections."""
    cfg = model_zoo.get_config("COCO-Detection/retinanet_R_50_FPN_1x.yaml")
    use_res2net(cfg, TINY)
    cfg.MODEL.DEVICE, cfg.MODEL.BACKBONE.FREEZE_AT, cfg.MODEL.RES2NET.NORM = "cpu", 0, "BN"
    cfg.MODEL.RETINANET.NUM_CLASSES, cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 3, 0.0
    theirs = build_model(cfg)
    ours = build_retinanet(
        backbone={"name": TINY, "norm": "BN", "freeze_at": 0}, num_classes=3, score_threshold=0.0
    )
    missing = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert missing == (["loss_normalizer"], [])
    for left, right in zip(
        ours.anchor_generator.cell_anchors, theirs.anchor_generator.cell_anchors, strict=True
    ):
        torch.testing.assert_close(left, right)
    for _ in range(3):
        batch = [sample(1), sample(2, height=96)]
        with EventStorage():
            expected = theirs([to_detectron2(one, with_targets=True, device=ours.device) for one in batch])
        found = ours(batch)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value)
    assert float(ours.loss_normalizer) == pytest.approx(theirs.loss_normalizer)
    with torch.no_grad():
        (expected,) = theirs.eval()([to_detectron2(batch[0], with_targets=False, device=ours.device)])
        (found,) = ours.eval()([batch[0]])
    # Theirs leave places to boxes outside of the image, which are then dropped.
    theirs, count = expected["instances"], len(expected["instances"])
    assert 50 < count <= len(found["boxes"]) == 100
    torch.testing.assert_close(found["boxes"][:count], theirs.pred_boxes.tensor)
    torch.testing.assert_close(found["scores"][:count], theirs.scores)
    assert found["labels"][:count].equal(theirs.pred_classes)


def test_a_loss_that_is_only_measured_leaves_the_training_alone():
    """Each image's own, so batches of any size give the same."""
    model, images = small().eval(), [sample(1), sample(3, height=96)]
    batches = [images], [[one] for one in images]
    first, second = (mean_losses(model, batch, device=torch.device("cpu")) for batch in batches)
    assert first == second
    assert float(model.loss_normalizer) == 100
    model.train()(images)
    assert float(model.loss_normalizer) != 100
    assert "loss_normalizer" in model.state_dict()


def test_what_divides_the_losses_is_in_the_state():
    """So a resumed training has the losses of an uninterrupted one."""
    model, twin = small(), small()
    sum(model([sample(3)]).values()).backward()
    twin.load_state_dict(model.state_dict())
    batch = [sample(2)]
    assert model(batch) == twin(batch)
    assert model.loss_normalizer == twin.loss_normalizer


def test_no_compiler_changes_the_losses(monkeypatch):
    """The one in detectron2's function does after a few calls, and so would a resumed training differ."""
    monkeypatch.setattr(retinanet, "sigmoid_focal_loss_jit", None)
    assert small()([sample(2)])["loss_cls"] > 0
    assert retinanet.sigmoid_focal_loss_jit is None


def test_rows_of_classes_are_found_for_each_anchor():
    old, new = small(num_classes=3), small(num_classes=2)
    assert [*new.class_layers] == ["head.cls_score"]
    rows = new.class_layers["head.cls_score"]
    assert rows.times == 9
    there, into = old.head.cls_score.weight, new.head.cls_score.weight
    copied = Classes(["a", "b", "c"], ["c", "d"]).copied(there, into, rows)
    for anchor in range(9):
        assert copied[2 * anchor].equal(there[3 * anchor + 2])
        assert copied[2 * anchor + 1].equal(into[2 * anchor + 1])


def test_half_precision_leaves_scores_whole():
    model = small(score_threshold=0.0).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model.head.cls_score.bias.copy_(torch.linspace(3, 6, 18))  # nine anchors, two classes
        (found,) = model([sample()])
    scores = found["scores"]
    assert len(scores.unique()) > len(scores.bfloat16().unique())


def test_settings_have_the_defaults_of_the_schema():
    fields, cfg = RetinaNetConfig.model_fields, make_config(RETINANET, {}, RETINANET_SETTINGS)
    for name in RETINANET_SETTINGS.keys() - {"num_classes"}:
        assert fields[name].default == attrgetter(RETINANET_SETTINGS[name])(cfg), name


@pytest.mark.parametrize(("key", "value", "words"), [
    ("MODEL.RETINANET.NUM_CONVS", 1, "set by model.head_convs"),
    ("MODEL.RETINANET.NORM", "GN", "set by model.norm"),
    ("MODEL.RETINANET.IN_FEATURES", ["p7", "p6"], "set by model.arch"),
    ("MODEL.FPN.IN_FEATURES", [], "cannot build the model"),
    ("MODEL.RETINANET.BBOX_REG_WEIGHTS", [1.0, 2.0], "takes four numbers above 0"),
    ("MODEL.RETINANET.BBOX_REG_WEIGHTS", [1.0, 1.0, 1.0, 0.0], "takes four numbers above 0"),
    ("MODEL.RPN.NMS_THRESH", 0.5, "has no effect on retinanet"),
    ("MODEL.RPN.BATCH_SIZE_PER_IMAGE", 64, "has no effect on retinanet"),
    ("MODEL.RETINANET.BBOX_REG_LOSS_TYPE", "l2", "should be one of smooth_l1, giou"),
])  # fmt: skip
def test_keys_of_detectron2_act_or_are_refused(key, value, words):
    with pytest.raises(ConfigError, match=words):
        small(detectron2={key: value})


def test_keys_of_detectron2_that_act():
    keys = {"MODEL.RETINANET.FOCAL_LOSS_GAMMA": 1.5, "MODEL.RETINANET.BBOX_REG_LOSS_TYPE": "giou"}
    model = small(detectron2=keys)
    assert (model.focal_loss_gamma, model.box_reg_loss_type) == (1.5, "giou")
    half = small(detectron2={"MODEL.RETINANET.PRIOR_PROB": 0.5})
    assert half.head.cls_score.bias.eq(0).all()
    assert model.head.cls_score.bias.lt(-4).all()
    with pytest.raises(ConfigError, match="SMOOTH_L1_LOSS_BETA has no effect where"):
        small(detectron2={**keys, "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": 0.5})


def test_boxes_outside_of_the_image_take_no_place():
    model = small(score_threshold=0.0, detections_per_image=20).eval()
    with torch.no_grad():
        model.head.bbox_pred.bias.copy_(torch.tensor([30.0, 0, 0, 0] * 8 + [0.0, 0, 0, 0]))  # to the right
        model.head.cls_score.bias[:16] += 3  # and likelier
        (found,) = model([sample()])
    assert len(found["boxes"]) == 20


def test_groups_of_a_single_value_are_refused():
    with pytest.raises(ConfigError, match="model.fpn_channels=32 a map of one pixel.*take 64"):
        small(fpn_channels=32)


def test_batch_norm_of_a_single_pixel_is_explained():
    with pytest.raises(ConfigError, match="batch norm cannot learn from one image"):
        small()([sample(height=32, width=32)])


@every_network()
def test_every_backbone_feeds_it(name):
    if "next29" in name:  # three stages, for small images
        with pytest.raises(ConfigError, match=r"res5.*allowed: stem, res2, res3, res4"):
            build_retinanet(backbone={"name": name}, num_classes=2, **SMALL)
        return
    with torch.device("meta"):
        model = build_retinanet(backbone={"name": name}, num_classes=2, **SMALL)
    assert set(model.backbone.bottom_up.output_shape()) == {"res3", "res4", "res5"}
