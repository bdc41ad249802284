"""The scores of other libraries for the cases of `scored`: `from references import reference_scores`."""

import warnings

import numpy as np
import pytest
import torch
from coco_cases import STATS, raw_pycocotools
from scored import COUNT, NAMES

from res2net_dense.evaluation.coco import prediction_to_records

SINGLE = ("mae", "adaptive_f", "weighted_f", "s", "adaptive_e", "adaptive_iou")
CURVES = ("precision", "recall", "f", "e", "iou")


def reference_scores(kind, case, folder):
    """Scores by our names, on our scale; `folder` is empty."""
    return {
        "classification": torchs_and_sklearns,
        "semantic": sklearns,
        "saliency": pysodmetrics,
        "voc": detectron2s,
        "coco": pycocotools,
    }[kind](case, folder)


def torchs_and_sklearns(case, folder):
    sklearn = pytest.importorskip("sklearn.metrics")
    logits = torch.stack([one["logits"] for one in case.predictions])
    guesses, classes = logits.argmax(1).numpy(), np.arange(5)
    shares = sklearn.recall_score(case.truth, guesses, labels=classes, average=None, zero_division=np.nan)
    return {
        "top1": 100 * sklearn.accuracy_score(case.truth, guesses),
        "top5": 100.0,  # of five classes
        "mean_class_accuracy": 100 * np.nanmean(shares),
        **{f"top1/{name}": 100 * share for name, share in zip(NAMES, shares, strict=True)},
    }


def sklearns(case, folder):
    sklearn = pytest.importorskip("sklearn.metrics")
    pairs = [(mask, one["sem_seg"].numpy()) for mask, one in zip(case.truth, case.predictions, strict=True)]
    truth = np.concatenate([mask[mask != 255] for mask, _ in pairs])
    guess = np.concatenate([labels[mask != 255] for mask, labels in pairs])
    of_class = sklearn.jaccard_score(truth, guess, average=None, labels=range(5))
    return {
        "mIoU": 100 * sklearn.jaccard_score(truth, guess, average="macro"),
        "fwIoU": 100 * sklearn.jaccard_score(truth, guess, average="weighted"),
        "pixel_accuracy": 100 * sklearn.accuracy_score(truth, guess),
        "mean_accuracy": 100 * sklearn.balanced_accuracy_score(truth, guess),
        **{f"IoU/{name}": 100 * value for name, value in zip(NAMES, of_class, strict=True)},
    }


def pysodmetrics(case, folder):
    maps = [(255 * one["saliency"]).round().numpy().astype(np.uint8) for one in case.predictions]
    each = [pysodmetrics_of(*pair) for pair in zip(maps, case.truth, strict=True)]
    mean = {name: np.mean([one[name] for one in each], axis=0) for name in SINGLE + CURVES}
    precision, recall = mean["precision"], mean["recall"]
    with np.errstate(invalid="ignore"):
        f_measure = 1.3 * precision * recall / (0.3 * precision + recall)
    return {
        "MAE": mean["mae"],
        "max_F": mean["f"].max(),
        "max_F_per_image": np.mean([one["f"].max() for one in each]),
        "max_F_of_mean_PR": np.nanmax(f_measure),
        "mean_F": mean["f"].mean(),
        "adaptive_F": mean["adaptive_f"],
        "weighted_F": mean["weighted_f"],
        "S": mean["s"],
        "max_E": mean["e"].max(),
        "mean_E": mean["e"].mean(),
        "adaptive_E": mean["adaptive_e"],
        "max_IoU": mean["iou"].max(),
        "mean_IoU": mean["iou"].mean(),
        "adaptive_IoU": mean["adaptive_iou"],
    }


def pysodmetrics_of(saliency, mask, rescale=True):
    """PySODMetrics' results of one image by our names, curves from the lowest threshold on."""
    sod = pytest.importorskip("py_sod_metrics")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes to be removed, and of empty means
        measures = {
            "mae": sod.MAE(),
            "f": sod.Fmeasure(),
            "w": sod.WeightedFmeasure(),
            "s": sod.Smeasure(),
            "e": sod.Emeasure(),
            "iou": sod.FmeasureV2({"iou": sod.IOUHandler(True, True)}),
        }
        for measure in measures.values():
            if rescale:
                measure.step(saliency, mask.astype(np.uint8) * 255)
            else:
                measure.step(saliency / 255, mask, normalize=False)
        got = {name: measure.get_results() for name, measure in measures.items()}
    return {
        "mae": got["mae"]["mae"],
        "adaptive_f": got["f"]["fm"]["adp"],
        "weighted_f": got["w"]["wfm"],
        "s": got["s"]["sm"],
        "adaptive_e": got["e"]["em"]["adp"],
        "adaptive_iou": got["iou"]["iou"]["adaptive"],
        "precision": got["f"]["pr"]["p"][::-1],
        "recall": got["f"]["pr"]["r"][::-1],
        "f": got["f"]["fm"]["curve"][::-1],
        "e": got["e"]["em"]["curve"][::-1],
        "iou": got["iou"]["iou"]["dynamic"][::-1],
    }


def detectron2s(case, folder):
    """Its code of VOC reads whole numbers, and asks for more than the threshold."""
    voc_eval = pytest.importorskip("detectron2.evaluation.pascal_voc_evaluation").voc_eval
    for index, (boxes, labels, difficult) in enumerate(case.truth):
        own = "".join(
            f"<object><name>{NAMES[label]}</name><pose>x</pose><truncated>0</truncated>"
            f"<difficult>{int(flag)}</difficult><bndbox><xmin>{int(a) + 1}</xmin><ymin>{int(b) + 1}</ymin>"
            f"<xmax>{int(c)}</xmax><ymax>{int(d)}</ymax></bndbox></object>"
            for (a, b, c, d), label, flag in zip(boxes, labels, difficult, strict=True)
        )
        (folder / f"{index}.xml").write_text(f"<annotation>{own}</annotation>")
    (folder / "list.txt").write_text("".join(f"{index}\n" for index in range(COUNT)))
    for label, name in enumerate(NAMES):
        lines = []
        for image, found in enumerate(case.predictions):
            own = found["labels"] == label
            boxes = (found["boxes"][own].double() + torch.tensor([1, 1, 0, 0])).tolist()
            for box, score in zip(boxes, found["scores"][own].tolist(), strict=True):
                lines.append(" ".join(map(str, [image, score, *box])))
        (folder / f"{name}.txt").write_text("\n".join(lines))
    files = [str(folder / name) for name in ("{}.txt", "{}.xml", "list.txt")]
    table = np.array(
        [[100 * voc_eval(*files, name, iou / 100)[2] for iou in range(50, 100, 5)] for name in NAMES]
    )
    return {
        "bbox/AP": table.mean(), "bbox/AP50": table[:, 0].mean(), "bbox/AP75": table[:, 5].mean(),
        **{f"bbox/AP50/{name}": value for name, value in zip(NAMES, table[:, 0], strict=True)},
    }  # fmt: skip


def pycocotools(case, folder):
    ids = [category["id"] for category in case.truth["categories"]]
    records = [
        record
        for image_id, one in zip(case.ids, case.predictions, strict=True)
        for record in prediction_to_records(one, image_id, ids)
    ]
    numbered = [{"id": number, **one} for number, one in enumerate(case.truth["annotations"], 1)]
    stats, precision = raw_pycocotools({**case.truth, "annotations": numbered}, records, "bbox")
    of_class = [100 * precision[:, :, k, 0, -1].mean() for k in range(5)]
    return {
        **{f"bbox/{name}": value for name, value in zip(STATS, stats, strict=True)},
        **{f"bbox/AP/{name}": value for name, value in zip(NAMES, of_class, strict=True)},
    }
