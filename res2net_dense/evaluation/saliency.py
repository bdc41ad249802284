"""Scores of saliency maps over a set of images: fourteen measures, each with its protocol's name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from res2net_dense.errors import DatasetError
from res2net_dense.evaluation.base import Gather, ImageEvaluator
from res2net_dense.evaluation.operating_points import OperatingPoint
from res2net_dense.evaluation.saliency_measures import ImageScores, f_measure, score_map
from res2net_dense.evaluation.tables import align, show
from res2net_dense.types import Prediction, Sample

PROTOCOLS = {
    "MAE": "mean over images of the mean |map - mask|",
    "max_F": "maximum over 256 thresholds of the set's mean F curve, beta^2 = 0.3",
    "max_F_per_image": "mean over images of the maximum of each one's F curve, beta^2 = 0.3",
    "max_F_of_mean_PR": "maximum over 256 thresholds of F of the set's mean P and R, beta^2 = 0.3",
    "mean_F": "mean over 256 thresholds of the set's mean F curve, beta^2 = 0.3",
    "adaptive_F": "mean over images of F at min(2 * the map's mean, 1), beta^2 = 0.3",
    "weighted_F": "mean over images of the weighted F, beta^2 = 1",
    "S": "mean over images of the structure measure, alpha = 0.5",
    "max_E": "maximum over 256 thresholds of the set's mean E curve",
    "mean_E": "mean over 256 thresholds of the set's mean E curve",
    "adaptive_E": "mean over images of E at min(2 * the map's mean, 1)",
    "max_IoU": "maximum over 256 thresholds of the set's mean IoU curve",
    "mean_IoU": "mean over 256 thresholds of the set's mean IoU curve",
    "adaptive_IoU": "mean over images of IoU at min(2 * the map's mean, 1)",
}
"""How each metric is computed from the images of a set; scores of other protocols do not compare."""

METRICS = tuple(PROTOCOLS)

RESCALE_NOTES = {
    True: "each map is stretched to its own minimum and maximum first",
    False: "maps are taken as they are, not stretched to their own minimum and maximum",
}
"""What a table says of `rescale`."""

_SINGLE, _CURVES = ImageScores._fields[:6], ImageScores._fields[6:]
# Sums of whole numbers of this unit are the same in any order and any division among processes.
_UNIT = 2.0**-40
_COLUMNS = ("MAE", "max_F", "mean_F", "adaptive_F", "weighted_F", "S", "max_E", "mean_E", "adaptive_E")


class SaliencyScores:
    """Sums of the scores of images; neither their order nor how they are merged changes a bit."""

    def __init__(self) -> None:
        self.count = 0
        self._sums = np.zeros(1 + len(_SINGLE) + 256 * len(_CURVES), dtype=np.int64)

    def add(self, scores: ImageScores) -> None:
        """Add one image."""
        self._sums += np.rint(np.hstack([scores.f.max(), *scores]) / _UNIT).astype(np.int64)
        self.count += 1

    def merge(self, other: SaliencyScores) -> None:
        """Add the images of another, which stays as it is."""
        self._sums += other._sums
        self.count += other.count

    def _means(self) -> np.ndarray:
        return self._sums * _UNIT / self.count if self.count else np.full(self._sums.shape, np.nan)

    def curves(self) -> dict[str, np.ndarray]:
        """The mean curves of the set, NaN without an image.

        Returns:
            `precision`, `recall`, `f`, `e` and `iou`, each (256,) float64, of the pixels >= 0, 1, ... 255.
        """
        return dict(zip(_CURVES, self._means()[1 + len(_SINGLE) :].reshape(-1, 256), strict=True))

    def metrics(self) -> dict[str, float]:
        """The scores of the set by the names of `METRICS`; all are NaN without an image."""
        best_f, *single = self._means()[: 1 + len(_SINGLE)].tolist()
        mean, curves = dict(zip(_SINGLE, single, strict=True)), self.curves()
        scores = {
            "MAE": mean["mae"],
            "max_F_per_image": best_f,
            "max_F_of_mean_PR": float(f_measure(curves["precision"], curves["recall"]).max()),
            "weighted_F": mean["weighted_f"],
            "S": mean["s"],
        }
        for name in ("F", "E", "IoU"):
            curve = curves[name.lower()]
            scores[f"max_{name}"], scores[f"mean_{name}"] = float(curve.max()), float(curve.mean())
            scores[f"adaptive_{name}"] = mean[f"adaptive_{name.lower()}"]
        return {name: scores[name] for name in METRICS}


class SaliencyEvaluator(ImageEvaluator):
    """Score saliency maps against masks, one set of images or several.

    All scores are in [0, 1], except E, which by its definition can pass 1 by 1 / (pixels - 1).

    `evaluate` returns the scores of `PROTOCOLS`, of several sets each as `ECSSD/max_F`. An image without a
    prediction counts as a map of zeros, and a warning says how many there were.

    Args:
        read_mask: reads the mask of an image id, (H, W) bool, when it is needed.
        sets: name and number of images of each, no name twice; ids run on from set to set, from 0.
        rescale: stretch each map to its own minimum and maximum first, as PySODMetrics does.
        gather: see `base.Gather`.
    """

    unseen = "the others count as maps of zeros"
    points_of = "mean of the images, pixels from the threshold on are salient"

    def __init__(
        self,
        read_mask: Callable[[int], np.ndarray],
        sets: Sequence[tuple[str, int]],
        *,
        rescale: bool = True,
        gather: Gather | None = None,
    ) -> None:
        self.sets = tuple(sets)
        self.rescale = rescale
        self._read_mask = read_mask
        self._set_of = np.repeat(range(len(self.sets)), [count for _, count in self.sets])
        super().__init__(range(len(self._set_of)), gather=gather)

    def reset(self) -> None:
        super().reset()
        self._sums = [SaliencyScores() for _ in self.sets]
        self._totals: list[SaliencyScores] = []

    def _add(self, image_id: int, sample: Sample, prediction: Prediction) -> None:
        """Only sums are kept."""
        mask, given = self._read_mask(image_id), prediction["saliency"].detach().cpu()
        saliency = (given / 255 if given.dtype == torch.uint8 else given.float()).numpy()
        try:
            scores = score_map(saliency, mask, rescale=self.rescale)
        except DatasetError as error:
            name = sample.get("file_name", "without a name")
            raise DatasetError(f"image {image_id} ({name}): {error}") from error
        self._sums[self._set_of[image_id]].add(scores)

    def _score(self) -> dict[str, float]:
        parts = self._gather((self._seen, self._sums))
        totals = [SaliencyScores() for _ in self.sets]
        for _, sums in parts:
            for total, part in zip(totals, sums, strict=True):
                total.merge(part)
        for image_id in self._find_unseen([ids for ids, _ in parts]):
            mask = self._read_mask(image_id)
            nothing = np.zeros(mask.shape, dtype=np.uint8)
            totals[self._set_of[image_id]].add(score_map(nothing, mask, rescale=self.rescale))
        self._totals = totals
        return {
            self._key(name, metric): value
            for (name, _), total in zip(self.sets, totals, strict=True)
            for metric, value in total.metrics().items()
        }

    def operating_points(self, precision: float) -> list[OperatingPoint]:
        points = []
        for (name, _), total in zip(self.sets, self._totals, strict=True):
            curves = total.curves()
            good = np.flatnonzero(curves["precision"] >= precision)
            values = (
                [good[0] / 255, *(curves[key][good[0]] for key in ("precision", "recall"))]
                if len(good)
                else [np.nan] * 3
            )
            points.append(OperatingPoint(name, *map(float, values)))
        return points

    def _table(self) -> str:
        """One row per set, and the protocols."""
        rows = [["set", "images", *_COLUMNS]]
        for name, count in self.sets:
            scores = (self._results[self._key(name, metric)] for metric in _COLUMNS)
            rows.append([name, str(count), *(show(score, 4) for score in scores)])
        return "\n".join([align(rows), "", describe_protocols(_COLUMNS), RESCALE_NOTES[self.rescale]])

    def _key(self, name: str, metric: str) -> str:
        return metric if len(self.sets) == 1 else f"{name}/{metric}"


def describe_protocols(metrics: Sequence[str]) -> str:
    """One line per metric: its name and how it is computed."""
    width = max(map(len, metrics))
    return "\n".join(f"{metric:{width}}  {PROTOCOLS[metric]}" for metric in metrics)
