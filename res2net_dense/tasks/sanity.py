"""What a run says of its data before it starts: the classes, and how the ground truth scores as a prediction.

The annotations of `data.val`, handed to the evaluator of the task as predictions, must reach the full score.
Where they do not, no model can: the reasons are named.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from res2net_dense.config import Config
from res2net_dense.data.statistics import even_sample
from res2net_dense.engine import distributed
from res2net_dense.engine.distributed import print_rank0
from res2net_dense.errors import first_few, printable
from res2net_dense.evaluation.tables import align
from res2net_dense.findings import Finding
from res2net_dense.tasks.base import Metric, Task
from res2net_dense.types import Source

SHOWN_CLASSES = 12
_TOLERANCE = 5e-4
"""Of the full score, for what the evaluators round."""
_log = logging.getLogger(__name__)


def describe_data(task: Task[Any], config: Any, *, training: bool, scored: str = "data.val") -> None:
    """Print the classes, and the score of the ground truth with a warning where it is not full.

    Args:
        task: of the config.
        config: as `prepare` returned it.
        training: whether `data.train` is used too.
        scored: what `data.val` is called, which `--split` may have replaced.
    """
    sources = {"data.train": task.open_source(config, train=True)} if training else {}
    if config.data.val is not None:
        sources[scored] = task.open_source(config, train=False)
    if table := class_table(sources, SHOWN_CLASSES):
        print_rank0(*table.split("\n"))
    if config.data.val is not None:
        line, findings = distributed.compute_once(lambda: score_truth(task, config, scored))
        if line:
            print_rank0(line)
        for finding in findings if distributed.is_main() else ():
            _log.warning("%s", printable(str(finding)))


def class_table(sources: Mapping[str, Source], limit: int | None = None) -> str:
    """A table of label, name, id in the annotation file and number of objects in each set, which label maps
    do not tell unread; empty for a single class of such maps. `limit` is the number of rows, None for all.
    """
    known = {name: list(source.classes()) for name, source in sources.items()}
    known = {name: classes for name, classes in known.items() if classes}
    class_names = next(iter(sources.values())).class_names
    if not known and len(class_names) < 2:
        return ""
    ids = [
        next((one[label][0] for one in known.values() if one[label][0] is not None), None)
        for label in range(len(class_names))
    ]
    with_ids = any(one is not None for one in ids)
    rows = [["class", "label", *(["id in the file"] if with_ids else []), *known]]
    for label, name in enumerate(class_names[:limit]):
        own = "" if ids[label] is None else printable(str(ids[label]))
        counts = [str(classes[label][1]) for classes in known.values()]
        rows.append([printable(name), str(label), *([own] if with_ids else []), *counts])
    more = len(class_names) - (len(rows) - 1)
    return align(rows) + (f"\n... and {more} more (`res2net-dense check` lists all)" if more else "")


def score_truth(task: Task[Any], config: Any, scored: str = "data.val") -> tuple[str, list[Finding]]:
    """Score the annotations of `data.val` as predictions, those of `task.truth_images` images at most.

    Returns:
        A line with the scores, empty where the task has none of its ground truth, and the finding that the
        score is not full.
    """
    whole = task.open_source(config, train=False)
    if not task.truth_images:
        return "", []
    places = even_sample(len(whole), task.truth_images)
    places = [place for place in places if task.truth_fits(config, whole, place)]
    if not places:
        return "", []
    source = whole.subset(places)
    with _quiet_evaluators():
        evaluator = task.build_evaluator(config, source)
        for place in range(len(source)):
            sample, prediction = task.truth(config, source, place)
            evaluator.process([sample], [prediction])
        results = evaluator.evaluate()
    scores = {metric.name: (results[metric.name], metric) for metric in task.truth_metrics(config)}
    shown = "  ".join(f"{name} {value:.{_digits(metric)}f}" for name, (value, metric) in scores.items())
    of = f" ({len(source)} of {len(whole)} images)" if len(source) < len(whole) else ""
    line = f"{scored}: highest possible score (its annotations{of} as predictions): {shown}"
    low = {name: value for name, (value, metric) in scores.items() if value < metric.scale * (1 - _TOLERANCE)}
    if not low:
        return line.replace("nan", "n/a"), []
    name, value = min(low.items(), key=lambda item: item[1])
    metric = scores[name][1]
    text = (
        f"the annotations{of} scored as predictions reach {name} {value:.{_digits(metric)}f} and not "
        f"{metric.scale:g}, so no model can: {'; '.join(_reasons(task, config, source, results, metric))}"
    )
    return line, [Finding("score-below-100", whole.name, text)]


def _reasons(
    task: Task[Any], config: Config, source: Any, results: Mapping[str, float], metric: Metric
) -> list[str]:
    reasons = task.truth_losses(config, source)
    full = metric.scale * (1 - _TOLERANCE)
    kinds = tuple(task.class_scores(config))
    classes = {
        name.removeprefix(f"{kind}/"): value
        for kind in kinds
        for name, value in results.items()
        if name.startswith(f"{kind}/") and value < full
    }
    if classes:
        worst = sorted(classes.items(), key=lambda item: item[1])
        reasons.append(f"classes below: {first_few([f'{name} {value:.1f}' for name, value in worst])}")
    return reasons or ["for a reason that is not known"]


def _digits(metric: Metric) -> int:
    return 1 if metric.scale > 1 else 3


@contextmanager
def _quiet_evaluators() -> Iterator[None]:
    """Leave out what evaluators warn of: the evaluation will say it."""
    logger = logging.getLogger("res2net_dense.evaluation")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
