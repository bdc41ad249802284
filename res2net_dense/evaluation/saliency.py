"""Scores of saliency maps over a set of images: fourteen measures, each with its protocol's name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from res2net_dense.errors import ConfigError, DatasetError
from res2net_dense.evaluation.base import Gather, ImageEvaluator
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
            scores |= {f"max_{name}": float(curve.max()), f"mean_{name}": float(curve.mean())}
            scores[f"adaptive_{name}"] = mean[f"adaptive_{name.lower()}"]
        return {name: scores[name] for name in METRICS}


class SaliencyEvaluator(ImageEvaluator):
    """Score saliency maps against masks, one set of images or several.

    All scores are in [0, 1], except E, which by its definition can pass 1 by 1 / (pixels - 1).

    `evaluate` returns the scores of `PROTOCOLS`, of several sets each as `ECSSD/max_F`. An image without a
    prediction counts as a map of zeros, and a warning says how many there were.
    """

    unseen = "the others count as maps of zeros"

    def __init__(
        self,
        read_mask: Callable[[int], np.ndarray],
        sets: Sequence[tuple[str, int]],
        *,
        rescale: bool = True,
        gather: Gather | None = None,
    ) -> None:
        """Store how to read the ground truth, which is read when it is needed.

        Args:
            read_mask: reads the mask of an image id, (H, W) bool.
            sets: name and number of images of each; ids run on from set to set, from 0.
            rescale: stretch each map to its own minimum and maximum first, as PySODMetrics does.
            gather: see `base.Gather`; None for one process.

        Raises:
            ConfigError: there is no set, or two have one name.
        """
        self.sets = tuple(sets)
        names = [name for name, _ in self.sets]
        if not names or len(set(names)) < len(names):
            raise ConfigError(
                f"sets to be scored need names that differ, these do not: {', '.join(names) or 'none'}"
            )
        self.rescale = rescale
        self._read_mask = read_mask
        self._set_of = np.repeat(range(len(names)), [count for _, count in self.sets])
        super().__init__(range(len(self._set_of)), gather=gather)

    def reset(self) -> None:
        """Forget all predictions and results."""
        super().reset()
        self._scores = [SaliencyScores() for _ in self.sets]
        self._of_sets: dict[str, dict[str, float]] = {}

    def _add(self, image_id: int, sample: Sample, prediction: Prediction) -> None:
        """Only sums are kept."""
        mask, saliency = self._read_mask(image_id), prediction["saliency"].detach().float().cpu().numpy()
        try:
            scores = score_map(saliency, mask, rescale=self.rescale)
        except DatasetError as error:
            name = sample.get("file_name", "without a name")
            raise DatasetError(f"image {image_id} ({name}): {error}") from error
        self._scores[self._set_of[image_id]].add(scores)

    def evaluate(self) -> dict[str, float]:
        """Gather over all processes and score; every process gets the same result.

        Raises:
            DatasetError: an image was evaluated by two processes, or the mask of one that was not evaluated
                cannot be read.
        """
        parts = self._gather((self._seen, self._scores))
        unseen = self._find_unseen([ids for ids, _ in parts])
        totals = [SaliencyScores() for _ in self.sets]
        for _, scores in parts:
            for total, part in zip(totals, scores, strict=True):
                total.merge(part)
        for image_id in unseen:
            mask = self._read_mask(image_id)
            nothing = np.zeros(mask.shape, dtype=np.uint8)
            totals[self._set_of[image_id]].add(score_map(nothing, mask, rescale=self.rescale))
        self._of_sets = {name: total.metrics() for (name, _), total in zip(self.sets, totals, strict=True)}
        if len(self.sets) == 1:
            return dict(self._of_sets[self.sets[0][0]])
        return {
            f"{name}/{metric}": value
            for name, metrics in self._of_sets.items()
            for metric, value in metrics.items()
        }

    def table(self) -> str:
        """The last results to read, one row per set, and their protocols; empty before `evaluate`."""
        if not self._of_sets:
            return ""
        rows = [["set", "images", *_COLUMNS]]
        for name, count in self.sets:
            scores = self._of_sets[name]
            rows.append([name, str(count), *(show(scores[metric], 4) for metric in _COLUMNS)])
        return "\n".join([align(rows), "", describe_protocols(_COLUMNS), RESCALE_NOTES[self.rescale]])


def describe_protocols(metrics: Sequence[str]) -> str:
    """One line per metric: its name and how it is computed."""
    width = max(map(len, metrics))
    return "\n".join(f"{metric:{width}}  {PROTOCOLS[metric]}" for metric in metrics)
