"""The configs of detectron2's model zoo with a backbone of ours: trained, scored, resumed, exported."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2 import model_zoo
from detectron2.config import LazyCall, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import convert_to_coco_json, load_coco_json
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import COCOEvaluator, DatasetEvaluators, SemSegEvaluator
from detectron2.export import TracingAdapter, scripting_with_instances
from detectron2.modeling import FCOS, PanopticFPN, RetinaNet, build_backbone, build_model
from detectron2.modeling.meta_arch.fcos import FCOSHead
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.events import EventStorage
from networks import TINY
from PIL import Image

from res2net_dense import create_backbone
from res2net_dense.errors import ConfigError
from res2net_dense.integrations.detectron2 import Res2NetBackbone, use_res2net

CONFIGS = {
    "faster": "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml",
    "mask": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
    "retinanet": "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
    "cascade": "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml",
    "keypoint": "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml",
    "panoptic": "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml",
    "DC5": "COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_1x.yaml",
    "C4": "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml",
    "deformable": "Misc/mask_rcnn_R_50_FPN_1x_dconv_c3-c5.yaml",
    "GN": "Misc/scratch_mask_rcnn_R_50_FPN_3x_gn.yaml",
}
SCORES = {"faster": ["bbox"], "retinanet": ["bbox"], "keypoint": ["bbox", "keypoints"]} | {
    "panoptic": ["bbox", "segm", "sem_seg"]
}
FOLDER = Path(model_zoo.get_config_file("Base-RCNN-FPN.yaml")).parent
YAMLS = sorted(
    str(path.relative_to(FOLDER))
    for path in FOLDER.rglob("*_*.yaml")
    if path.parent.name != "quick_schedules"
)


@pytest.fixture(scope="module")
def toy_set(toy, tmp_path_factory):
    """The toy set with keypoints in the boxes of its shapes, and label maps; the name in detectron2."""
    name = "toy_of_the_zoo_tests"
    folder = tmp_path_factory.mktemp("label_maps")
    records = load_coco_json(str(toy / "coco/annotations/train.json"), str(toy / "coco/train"))[:4]
    for record in records:
        labels = np.zeros((record["height"], record["width"]), np.uint8)
        record["sem_seg_file_name"] = str(folder / f"{record['image_id']}.png")
        for item in record["annotations"]:
            x, y, width, height = item["bbox"]
            item["category_id"] = 0
            item["bbox_mode"] = BoxMode.XYWH_ABS
            item["keypoints"] = [v for i in range(17) for v in (x + width * i / 17, y + height * i / 17, 2)]
            labels[int(y) : int(y + height), int(x) : int(x + width)] = 1
        Image.fromarray(labels).save(record["sem_seg_file_name"])
    DatasetCatalog.register(name, lambda: records)
    joints = [f"joint{i}" for i in range(17)]
    MetadataCatalog.get(name).set(
        thing_classes=["shape"], stuff_classes=["ground", "shape"], ignore_label=255,
        keypoint_names=joints, keypoint_flip_map=[],
    )  # fmt: skip
    convert_to_coco_json(name, str(folder / "coco.json"))
    MetadataCatalog.get(name).json_file = str(folder / "coco.json")
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def config(kind, folder, data=None):
    """A config of the zoo with a tiny backbone and small heads."""
    cfg = model_zoo.get_config(CONFIGS[kind])
    use_res2net(cfg, TINY)
    cfg.MODEL.DEVICE, cfg.OUTPUT_DIR, cfg.DATALOADER.NUM_WORKERS = "cpu", str(folder), 0
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (data,) if data else ()
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (64,), 64
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR = 2, 2, 1e-4
    cfg.SOLVER.STEPS = ()
    model = cfg.MODEL
    model.BACKBONE.FREEZE_AT = 0
    model.FPN.OUT_CHANNELS = model.ROI_BOX_HEAD.FC_DIM = model.ROI_BOX_HEAD.CONV_DIM = 32
    model.ROI_MASK_HEAD.CONV_DIM = model.SEM_SEG_HEAD.CONVS_DIM = 32
    model.ROI_KEYPOINT_HEAD.CONV_DIMS = [16, 16]
    model.ROI_HEADS.NUM_CLASSES, model.RETINANET.NUM_CLASSES, model.SEM_SEG_HEAD.NUM_CLASSES = 1, 1, 2
    model.RPN.PRE_NMS_TOPK_TRAIN, model.RPN.POST_NMS_TOPK_TRAIN = 200, 50
    model.RPN.PRE_NMS_TOPK_TEST, model.RPN.POST_NMS_TOPK_TEST = 200, 20
    model.ROI_HEADS.SCORE_THRESH_TEST = model.RETINANET.SCORE_THRESH_TEST = (
        0.0  # nothing is learnt in two steps
    )
    cfg.TEST.DETECTIONS_PER_IMAGE = 10
    return cfg


def read_labels(path, dtype):
    """detectron2's own reader asks NumPy 2 for what it refuses."""
    return np.asarray(Image.open(path), dtype)


class Trainer(DefaultTrainer):
    @classmethod
    def build_evaluator(cls, cfg, name):
        evaluators = [COCOEvaluator(name, output_dir=cfg.OUTPUT_DIR, allow_cached_coco=False)]
        if cfg.MODEL.META_ARCHITECTURE == "PanopticFPN":
            evaluators.append(SemSegEvaluator(name, sem_seg_loading_fn=read_labels))
        return DatasetEvaluators(evaluators)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_config_of_the_zoo_trains_is_scored_and_resumes(kind, toy_set, tmp_path):
    cfg = config(kind, tmp_path, toy_set)
    trainer = Trainer(cfg)
    before = {key: value.clone() for key, value in trainer.model.named_parameters()}
    trainer.resume_or_load(resume=False)
    trainer.train()
    results = trainer._last_eval_results
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
    assert any(
        not before[key].equal(value)
        for key, value in trainer.model.named_parameters()
        if key.startswith(("backbone.net", "backbone.bottom_up"))
    )
    scores = SCORES.get(kind, ["bbox", "segm"])
    assert sorted(results) == scores
    assert all(math.isfinite(results[score]["AP"]) for score in scores if score != "sem_seg")

    cfg.SOLVER.MAX_ITER = 3
    again = Trainer(cfg)
    again.resume_or_load(resume=True)
    assert again.start_iter == 2
    state = trainer.model.state_dict()
    assert all(value.equal(state[key]) for key, value in again.model.state_dict().items())
    again.train()
    assert again.iter == 3


def images():
    """Two images of different size."""
    generator = torch.Generator().manual_seed(2)
    return [torch.rand(3, *size, generator=generator) * 255 for size in ((64, 96), (96, 80))]


def detect(model, image):
    """The tensors that a model finds in an image, by name."""
    inputs, maps = [{"image": image}], None
    if isinstance(model, RetinaNet):
        found = model(inputs)[0]["instances"]
    elif isinstance(model, PanopticFPN):
        (found,), maps = model.inference(inputs, do_postprocess=False)
    else:
        found = model.inference(inputs, do_postprocess=False)[0]
    return tensors(found) | ({} if maps is None else {"sem_seg": maps})


def tensors(found):
    """The fields of eager or scripted `Instances`."""
    names = FIELDS | MASKS | {"pred_keypoints": torch.Tensor}
    fields = {name: getattr(found, name) for name in names if found.has(name)}
    return {name: getattr(value, "tensor", value) for name, value in fields.items()}


def built(kind, folder):
    torch.manual_seed(3)
    return build_model(config(kind, folder)).eval()


def some_in_make_test(kinds):
    """Every kind of detector; `make test` runs the three that share the least."""
    first = ("mask", "retinanet", "DC5")
    return pytest.mark.parametrize(
        "kind", [kind if kind in first else pytest.param(kind, marks=pytest.mark.slow) for kind in kinds]
    )


@some_in_make_test(CONFIGS)
@pytest.mark.filterwarnings("ignore")  # of torch's tracer
def test_a_config_of_the_zoo_can_be_traced(kind, tmp_path):
    model = built(kind, tmp_path)
    first, other = images()
    adapter = TracingAdapter(model, first, detect)
    traced = torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
    for image in (first, other):
        with torch.no_grad():
            expected = detect(model, image)
        assert len(expected["scores"]) > 0
        torch.testing.assert_close(adapter.outputs_schema(traced(image)), expected)


FIELDS = {"pred_boxes": Boxes, "scores": torch.Tensor, "pred_classes": torch.Tensor}
PROPOSALS = {"proposal_boxes": Boxes, "objectness_logits": torch.Tensor}
MASKS = {"pred_masks": torch.Tensor}
SCRIPTED = {
    "retinanet": FIELDS,
    "faster": FIELDS | PROPOSALS,
    **dict.fromkeys(("mask", "DC5", "C4", "deformable", "GN"), FIELDS | PROPOSALS | MASKS),
}


@some_in_make_test(SCRIPTED)
@pytest.mark.filterwarnings("ignore")  # of torch.jit.script
def test_what_detectron2_can_script_is_scripted_with_our_backbone(kind, tmp_path):
    model = built(kind, tmp_path)
    scripted = scripting_with_instances(model, SCRIPTED[kind])
    for image in images():
        inputs = [{"image": image}]
        with torch.no_grad():
            expected = detect(model, image)
            if kind == "retinanet":  # scripted, it leaves out what comes last
                fields = tensors(scripted(inputs)[0])
                fields["pred_boxes"] = Boxes(fields["pred_boxes"])
                size = tuple(image.shape[1:])
                found = detector_postprocess(Instances(size, **fields), *size)
            else:
                found = scripted.inference(inputs, do_postprocess=False)[0]
        assert len(expected["scores"]) > 0
        torch.testing.assert_close(tensors(found), expected)


def test_fcos_learns_on_its_fpn(toy_set, tmp_path):
    cfg = config("retinanet", tmp_path)
    cfg.MODEL.BACKBONE.NAME = "build_fcos_res2net_fpn_backbone_dense"
    backbone = build_backbone(cfg)
    assert list(backbone.output_shape()) == ["p3", "p4", "p5", "p6", "p7"]
    assert backbone.top_block.in_feature == "p5"
    shapes = list(backbone.output_shape().values())
    model = FCOS(
        backbone=backbone,
        head=FCOSHead(input_shape=shapes, num_classes=1, conv_dims=[32]),
        head_in_features=list(backbone.output_shape()),
        num_classes=1,
        test_score_thresh=0.0,
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
    )
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    target = Instances((64, 96), gt_boxes=Boxes([[8.0, 8, 60, 50]]), gt_classes=torch.tensor([0]))
    image = images()[0]
    before = backbone.bottom_up.net.conv1.weight.clone()
    for _ in range(2):
        with EventStorage():
            losses = model([{"image": image, "instances": target}])
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert not before.equal(backbone.bottom_up.net.conv1.weight)
    assert len(model.eval()([{"image": image}])[0]["instances"]) > 0


def test_a_lazy_config_takes_the_backbone():
    cfg = model_zoo.get_config("COCO-Detection/fcos_R_50_FPN_1x.py")
    cfg.model.backbone.bottom_up = LazyCall(Res2NetBackbone)(net=LazyCall(create_backbone)(name=TINY))
    model = instantiate(cfg.model)
    target = Instances((64, 96), gt_boxes=Boxes([[8.0, 8, 60, 50]]), gt_classes=torch.tensor([0]))
    with EventStorage():
        losses = model([{"image": images()[0], "instances": target}])
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.backbone.bottom_up.parameters())


def test_p6_of_retinanet_is_made_from_c5(tmp_path):
    backbone = build_backbone(config("retinanet", tmp_path)).eval()
    x = torch.randn(1, 3, 64, 128)
    with torch.no_grad():
        maps = backbone(x)
        c5 = backbone.bottom_up(x)["res5"]
        assert maps["p6"].equal(backbone.top_block.p6(c5))
    assert [tuple(value.shape[2:]) for value in maps.values()] == [(8, 16), (4, 8), (2, 4), (1, 2), (1, 1)]


REFUSED = {
    "X_101_32x8d": "MODEL.RESNETS.(NUM_GROUPS is 32|WIDTH_PER_GROUP is 8), but res2net101_26w_4s has (1|26)",
    "X_152": "MODEL.RESNETS.(NUM_GROUPS is 32|DEPTH is 152)",
}


@pytest.mark.parametrize("yaml", YAMLS)
def test_every_config_of_the_zoo_is_built_or_refused_by_the_name_of_a_key(yaml):
    cfg = model_zoo.get_config(yaml)
    cfg.MODEL.DEVICE = "cpu"
    use_res2net(cfg, "res2net101_26w_4s" if cfg.MODEL.RESNETS.DEPTH > 50 else "res2net50_26w_4s")
    for part, words in REFUSED.items():
        if part in yaml:
            with pytest.raises(ConfigError, match=words) as caught:
                build_backbone(cfg)
            assert "\n" not in str(caught.value)
            return
    with torch.device("meta"):
        shapes = build_backbone(cfg).output_shape()
    heads = {
        "GeneralizedRCNN": cfg.MODEL.ROI_HEADS.IN_FEATURES, "PanopticFPN": cfg.MODEL.ROI_HEADS.IN_FEATURES,
        "RetinaNet": cfg.MODEL.RETINANET.IN_FEATURES, "SemanticSegmentor": cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES,
        "ProposalNetwork": cfg.MODEL.RPN.IN_FEATURES,
    }  # fmt: skip
    assert set(heads[cfg.MODEL.META_ARCHITECTURE]) <= set(shapes)


def test_res5_of_a_c4_detector_has_the_weights_of_the_file(tmp_path):
    cfg = config("C4", tmp_path)
    source = build_backbone(_with(cfg, OUT_FEATURES=["res5"])).net
    torch.save(source.state_dict(), tmp_path / "w.pth")
    model = build_model(_with(cfg, WEIGHTS=str(tmp_path / "w.pth")))
    state = source.state_dict()
    assert all(v.equal(state[f"layer4.{key}"]) for key, v in model.roi_heads.res5.state_dict().items())
    assert all(v.equal(state[key]) for key, v in model.backbone.net.state_dict().items())
    assert not any(key.startswith("layer4") for key in model.backbone.net.state_dict())


def _with(cfg, **values):
    cfg = cfg.clone()
    for key, value in values.items():
        cfg.MODEL.RES2NET[key] = value
    return cfg
