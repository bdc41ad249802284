"""What holds for the evaluators of all benchmarks: each image counts once, in any order and any process."""

import logging
import math

import numpy as np
import pytest
import torch

pytest.importorskip("pycocotools")
pytest.importorskip("cv2")

from scored import COUNT, KINDS, NAMES, feed, make, scores  # noqa: E402

from res2net_dense.errors import ConfigError, DatasetError  # noqa: E402
from res2net_dense.evaluation.saliency import SaliencyEvaluator  # noqa: E402
from res2net_dense.evaluation.semantic import SemanticEvaluator  # noqa: E402


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def gathered(kind, shares):
    """What processes with these shares of the images send to each other."""
    parts = []
    for share in shares:
        scores(kind, share, gather=lambda part: [parts.append(part) or part])
    return parts


def test_two_processes_are_one(kind):
    parts = gathered(kind, [range(0, COUNT, 2), range(1, COUNT, 2)])
    np.testing.assert_equal(scores(kind, [], gather=lambda _: parts), scores(kind))


def test_an_image_in_two_processes_counts_once_or_is_an_error(kind):
    parts = gathered(kind, [range(7), range(6, COUNT)])  # as from a sampler that pads
    if kind in ("semantic", "saliency"):  # which only keep sums
        with pytest.raises(DatasetError, match="1 images were evaluated by more than one process"):
            scores(kind, [], gather=lambda _: parts)
    else:
        np.testing.assert_equal(scores(kind, [], gather=lambda _: parts), scores(kind))


def test_images_without_a_prediction_are_reported(kind, caplog):
    with caplog.at_level(logging.WARNING):
        fewer = scores(kind, range(4))
    assert f"only 4 of {COUNT} images" in caplog.text
    assert fewer != scores(kind)


def test_reset_forgets(kind):
    build, ids, predictions, *_ = make(kind)
    evaluator = build()
    feed(evaluator, ids, predictions, [0, 1])
    assert evaluator.table() == ""
    evaluator.evaluate()
    assert evaluator.table() != ""
    evaluator.reset()
    assert evaluator.table() == ""
    feed(evaluator, ids, predictions)
    for _ in range(2):
        np.testing.assert_equal(evaluator.evaluate(), scores(kind))


def test_unknown_and_repeated_images_are_refused(kind):
    build, ids, predictions, *_ = make(kind)
    evaluator = build()
    for image_id in (COUNT, -1, "a.png"):
        where = " of annotations" if kind == "coco" else ""
        with pytest.raises(DatasetError, match=f"not one of the {COUNT}{where} to be scored"):
            evaluator.process([{"image_id": image_id}], predictions[:1])
    feed(evaluator, ids, predictions, [0])
    with pytest.raises(DatasetError, match=f"image {ids[0]!r} was evaluated twice"):
        feed(evaluator, ids, predictions, [0])


@pytest.mark.parametrize("kind", ["voc", "coco"])
def test_detections_that_are_not_finite_are_left_out(kind, caplog):
    build, ids, predictions, *_ = make(kind)
    for place, (key, index) in enumerate([("scores", 3), ("boxes", (3, 0)), ("boxes", (3, 3))]):
        broken = {**predictions[place], key: predictions[place][key].clone()}
        broken[key][index] = (math.nan, math.inf, -math.inf)[place]
        fewer = {name: torch.cat([part[:3], part[4:]]) for name, part in predictions[place].items()}
        results = []
        for prediction in (broken, fewer):
            evaluator = build()
            with caplog.at_level(logging.WARNING):
                evaluator.process([{"image_id": ids[place]}], [prediction])
            results.append(evaluator.evaluate())
        np.testing.assert_equal(*results)
    assert caplog.text.count("left out 1 detections whose score or box is not finite") == 3


@pytest.mark.parametrize("kind", ["voc", "coco", "semantic"])
@pytest.mark.parametrize("label", [5, -1])
def test_labels_without_a_class_name_are_refused(kind, label):
    build, ids, predictions, *_ = make(kind)
    key = "sem_seg" if kind == "semantic" else "labels"
    wrong = predictions[0][key].clone()
    wrong.view(-1)[2] = label
    with pytest.raises(ConfigError, match=f"{label}.*only 5 class names"):
        build().process([{"image_id": ids[0]}], [{**predictions[0], key: wrong}])


@pytest.mark.parametrize("kind", ["semantic", "saliency"])
def test_what_is_wrong_with_a_mask_comes_through(kind):
    def broken(image_id):
        raise DatasetError(f"masks/{image_id}.png: cannot be read")

    if kind == "semantic":
        evaluator = SemanticEvaluator(broken, 2, class_names=NAMES)
    else:
        evaluator = SaliencyEvaluator(broken, [("made", 2)])
    predictions = make(kind).predictions
    with pytest.raises(DatasetError, match="^masks/1.png"):
        evaluator.process([{"image_id": 1}], predictions[:1])
    with pytest.raises(DatasetError, match="^masks/0.png"):
        evaluator.evaluate()
