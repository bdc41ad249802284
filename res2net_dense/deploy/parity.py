"""Whether an exported file computes what the network computes; one that does not is deleted.

Pictures of several sizes, in batches of one and two where the file takes them, go through both. What is
compared are the outputs themselves, and of the network as a whole what `model(batch)` says.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from res2net_dense.deploy.exported import ExportedModel, load_exported
from res2net_dense.errors import ExportError
from res2net_dense.models.graphs import Graph
from res2net_dense.types import Prediction, Sample

_SHORT_EDGE, _LEAST_STEP, _LEAST_EDGE = 224, 32, 64
_LOOKED_AT = 8
"""Pictures in which detections are looked for."""


class Tolerance(NamedTuple):
    """What may differ."""

    difference: float
    """Of logits, maps, scores and masks."""
    boxes: float
    """Of the edges of boxes, in pixels of the picture."""
    agreement: float
    """Least share of equal labels."""


TOLERANCES = {"fp32": Tolerance(1e-3, 0.1, 0.9999), "int8": Tolerance(math.inf, math.inf, 0.0)}
"""By a file's precision. An int8 file is another network, which the evaluation set judges: here it has but to
run and to give finite numbers."""


class Cut(NamedTuple):
    """Which detections a detector keeps."""

    score: float
    """From this one on."""
    most: int
    """At most so many of a picture."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Cut:
        """That of a resolved configuration; the usual one if it says nothing."""
        model = config.get("model", {})
        return cls(model.get("score_threshold", 0.05), model.get("detections_per_image", 100))


class Row(NamedTuple):
    """One output of one batch."""

    size: tuple[int, int]
    """Height and width of the pictures."""
    batch: int
    output: str
    max_abs: float
    """Largest difference; NaN where there is none to be had (labels, other shapes), infinite where a number
    is not finite.
    """
    agreement: float
    """Share of equal labels; NaN where there are none."""
    passed: bool
    note: str = ""


@dataclasses.dataclass(frozen=True)
class ParityReport:
    """What was compared, and how it came out."""

    tolerance: Tolerance
    rows: list[Row]
    notes: list[str]
    """What a reader should know of the whole."""

    @property
    def passed(self) -> bool:
        """Whether the file does what the network does."""
        return all(row.passed for row in self.rows)

    def failures(self) -> list[str]:
        """The rows that failed, in words with their numbers."""
        return [self._in_words(row) for row in self.rows if not row.passed]

    def table(self) -> str:
        """All rows as text, and the notes below."""
        cells = [("size", "batch", "output", "max difference", "agreement", "verdict")]
        for row in self.rows:
            agreement = "" if math.isnan(row.agreement) else f"{100 * row.agreement:.3f} %"
            verdict = ("good" if row.passed else "DIFFERS") + (f", {row.note}" if row.note else "")
            cells.append(
                (_size(row.size), str(row.batch), row.output, _number(row.max_abs), agreement, verdict)
            )
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]
        if math.isfinite(self.tolerance.difference):
            lines.append(
                f"at most {self.tolerance.difference:g} (boxes: {self.tolerance.boxes:g} pixels), at least "
                f"{100 * self.tolerance.agreement:g} % of labels equal"
            )
        return "\n".join([*lines, *self.notes])

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data for JSON: null for NaN, and what is infinite is text."""
        rows = [{name: _plain(value) for name, value in row._asdict().items()} for row in self.rows]
        tolerance = {name: _plain(value) for name, value in self.tolerance._asdict().items()}
        return {"passed": self.passed, "tolerance": tolerance, "rows": rows, "notes": self.notes}

    def _in_words(self, row: Row) -> str:
        words = f"{row.output} at {_size(row.size)}, batch {row.batch}"
        if math.isnan(row.max_abs) and math.isnan(row.agreement):
            return f"{words}: {row.note}"
        limit = self.tolerance.boxes if row.output.endswith("boxes") else self.tolerance.difference
        if not math.isnan(row.max_abs) and not _within(row.max_abs, limit):
            return f"{words} by {_number(row.max_abs)} (at most {limit:g})"
        return f"{words} in {100 * (1 - row.agreement):.3g} % of the labels"


def compare(
    graph: Graph,
    exported: ExportedModel,
    pictures: Sequence[Tensor] = (),
    *,
    model: nn.Module | None = None,
) -> ParityReport:
    """Run both on the same pictures.

    Args:
        graph: what was exported.
        exported: the file.
        pictures: each `(3, H, W)` uint8, RGB, such as the evaluation's; where there are none they are made
            up. They are resized to the sizes that are tried.
        model: the network itself, seeing pictures whole and once, whose predictions the file's must equal
            too. None leaves that out.

    Raises:
        ExportError: The file cannot be run.
    """
    description = exported.description
    tolerance, cut = TOLERANCES[description.precision], Cut.of(description.config)
    notes = [] if pictures else ["the pictures are made up: there was no evaluation set"]
    if description.precision == "int8":
        notes.append("int8 is another network: the evaluation set says what it is worth (--eval)")
    finds_objects = "boxes" in graph.outputs
    pictures = list(pictures) or made_pictures()
    if finds_objects:
        pictures = _with_detections(graph, pictures, description.size)
    height, width = pictures[0].shape[-2:]
    if not finds_objects:  # objects may be lost with their size, dense outputs are not
        factor = min(1.0, _SHORT_EDGE / min(height, width))
        height, width = round(height * factor), round(width * factor)
    sizes = [description.size] if description.size else sizes_to_try(height, width, graph.divisor)
    batches = [description.batch] if description.batch else [1, 2]
    rows: list[Row] = []
    found = 0
    for size in sizes:
        for batch in batches:
            images = torch.stack([_resized(pictures[n % len(pictures)], size) for n in range(batch)])
            with torch.no_grad():
                expected = dict(zip(graph.outputs, graph(images), strict=True))
            rows += _rows(expected, exported.run(images), size, batch, tolerance, cut)
            found += len(expected["boxes"]) if finds_objects else 0
        if model is not None:
            rows += _prediction_rows(model, exported, _resized(pictures[0], size), tolerance, cut)
    if finds_objects and not found:
        notes.append(
            "no picture has a detection, so boxes, labels and masks were not compared: give pictures on "
            "which the model finds something (data.val)"
        )
    return ParityReport(tolerance, rows, notes)


def gate(
    graph: Graph,
    path: str | Path,
    pictures: Sequence[Tensor] = (),
    *,
    model: nn.Module | None = None,
    name: str | Path | None = None,
) -> ParityReport:
    """Compare a file with what it was exported from, and delete it if it differs.

    Args:
        graph, pictures, model: see `compare`.
        path: the file.
        name: what to call it in messages, where `path` is a temporary one.

    Raises:
        ExportError: It differs or does not run; the message has the numbers, and the file is gone with those
            beside it.
    """
    path = Path(path)
    try:
        report = compare(graph, load_exported(path), pictures, model=model)
        failures = report.failures()
    except ExportError as error:
        delete_export(path)
        reason = str(error).replace(str(path), str(name or path))
        raise ExportError(f"{name or path} is not kept, it does not run: {reason}") from error
    if failures:
        delete_export(path)
        more = f" and {len(failures) - 3} more" if len(failures) > 3 else ""
        raise ExportError(
            f"{name or path} is not kept, it differs from the model: {'; '.join(failures[:3])}{more}; try "
            "another --format, or without --dynamic"
        )
    return report


def delete_export(path: Path) -> None:
    """Delete an exported file and what belongs to it: OpenVINO's weights, the JSON."""
    beside = [path.with_suffix(".bin")] if path.suffix == ".xml" else []
    for file in (path, path.with_name(f"{path.name}.json"), *beside):
        file.unlink(missing_ok=True)


def sizes_to_try(height: int, width: int, divisor: int) -> list[tuple[int, int]]:
    """Four sizes near the given one: a square and a wide one of multiples of the divisor, a large and an
    upright one that are none.
    """
    step = max(divisor, _LEAST_STEP)
    edge = max(round(min(height, width) / step) * step, _LEAST_EDGE, step)
    longer = max(round(max(height, width) / step) * step, edge + step)
    return [
        (edge, edge),
        (edge, longer),
        (edge + step // 3, longer - 1),
        (edge + step // 2 + 1, edge // 2 + 1),
    ]


def made_pictures(
    count: int = 2, size: tuple[int, int] = (_SHORT_EDGE, _SHORT_EDGE * 3 // 2)
) -> list[Tensor]:
    """Pictures of coloured blobs and some noise, `(3, H, W)` uint8, always the same."""
    generator = torch.Generator().manual_seed(0)
    blobs = torch.rand(count, 3, 7, 9, generator=generator) * 1.6 - 0.3
    pictures = F.interpolate(blobs, size, mode="bicubic", align_corners=False)
    pictures += 0.05 * torch.randn(pictures.shape, generator=generator)
    return list((pictures * 255).clamp(0, 255).to(torch.uint8))


def _with_detections(
    graph: Graph, pictures: Sequence[Tensor], size: tuple[int, int] | None
) -> Sequence[Tensor]:
    """Those of the first pictures in which the network finds something; all if there are none."""
    found = []
    for picture in pictures[:_LOOKED_AT]:
        with torch.no_grad():
            outputs = graph(_resized(picture, size or (picture.shape[-2], picture.shape[-1]))[None])
        if len(outputs[graph.outputs.index("boxes")]):
            found.append(picture)
    return found or pictures


def _rows(
    expected: Mapping[str, Tensor],
    got: Mapping[str, Tensor],
    size: tuple[int, int],
    batch: int,
    tolerance: Tolerance,
    cut: Cut,
) -> Iterator[Row]:
    """Compare the outputs of one batch."""
    if "boxes" in expected:
        yield from _detection_rows(expected, got, size, tolerance, cut)
        return
    for name, value in expected.items():
        other, worst, share, good = got[name], math.nan, math.nan, True
        if other.shape != value.shape:
            note = f"{tuple(other.shape)} instead of {tuple(value.shape)}"
            yield Row(size, batch, name, math.nan, math.nan, False, note)
            continue
        if name != "labels":
            worst = _difference(value, other)
            good = _within(worst, tolerance.difference)
        if name != "saliency":
            labels = other.long() if name == "labels" else _of_classes(other).argmax(1)
            apart = _difference(expected["logits"], got["logits"])
            share, explained = _agreement(_of_classes(expected["logits"]), labels, apart)
            good &= share >= tolerance.agreement or explained
        yield Row(size, batch, name, worst, share, good)


def _of_classes(logits: Tensor) -> Tensor:
    """`(N, K, ...)` logits of classes; of a map `(N, H, W)` those of the background, which are 0, and its."""
    return torch.stack([torch.zeros_like(logits), logits], 1) if logits.dim() == 3 else logits


def _agreement(logits: Tensor, labels: Tensor, apart: float) -> tuple[float, bool]:
    """The share of labels that are those of the logits, and whether the others are explained by logits that
    are `apart` from those which the labels are of.
    """
    best, own = logits.max(1)
    wrong = labels != own
    share = 1 - float(wrong.double().mean())
    if int(labels.min()) < 0 or int(labels.max()) >= logits.shape[1]:
        return share, False
    chosen = logits.gather(1, labels[:, None])[:, 0]
    return share, bool((best - chosen <= 2 * apart).all())


def _difference(one: Tensor, other: Tensor) -> float:
    """The largest difference; infinite if a number of either is not finite, or their shapes differ."""
    if one.shape != other.shape or not one.numel():
        return 0.0 if one.shape == other.shape else math.inf
    worst = float((one.double() - other.double()).abs().max())
    return worst if math.isfinite(worst) else math.inf


def _within(worst: float, limit: float) -> bool:
    return math.isfinite(worst) and worst <= limit


def _detection_rows(
    expected: Mapping[str, Tensor],
    got: Mapping[str, Tensor],
    size: tuple[int, int],
    tolerance: Tolerance,
    cut: Cut,
) -> Iterator[Row]:
    """Compare the detections of one picture, each with the likest of its class."""
    counts = len(expected["boxes"]), len(got["boxes"])
    pairs = _pairs(expected, got, cut, tolerance.difference)
    for name, value in expected.items():
        if pairs is None:
            note = f"{counts[1]} detections instead of {counts[0]}"
            yield Row(size, 1, name, math.nan, math.nan, False, note)
            continue
        note, one, other = f"{len(pairs[0])} detections", value[pairs[0]], got[name][pairs[1]]
        share = 1 - float((one != other).double().mean()) if one.numel() else math.nan
        if name == "labels":
            yield Row(size, 1, name, math.nan, share, share == 1 or math.isnan(share), note)
        elif name == "masks" and value.dtype == torch.bool:
            yield Row(size, 1, name, math.nan, share, not share < tolerance.agreement, note)
        else:
            worst, limit = _difference(one, other), tolerance.difference
            limit = tolerance.boxes if name == "boxes" else limit
            yield Row(size, 1, name, worst, math.nan, _within(worst, limit), note)


def _pairs(
    expected: Mapping[str, Tensor], got: Mapping[str, Tensor], cut: Cut, margin: float
) -> tuple[Tensor, Tensor] | None:
    """The numbers of detections that belong together; None if one has no counterpart.

    Runtimes may order equal scores otherwise, so that each takes the likest one that is left. Those with a
    score within `margin` of where detections are cut off may be on one side alone.
    """
    scores = expected["scores"].double(), got["scores"].double()
    apart = torch.cdist(expected["boxes"].double(), got["boxes"].double(), p=math.inf)
    apart += 1e3 * (scores[0][:, None] - scores[1]).abs()
    apart += (expected["labels"][:, None] != got["labels"]) * 1e6
    apart = apart.nan_to_num(1e9, 1e9, 1e9)
    pairs: list[tuple[int, int]] = []
    for number in scores[0].argsort(descending=True, stable=True).tolist():
        if len(pairs) == len(scores[1]):
            break
        pairs.append((number, int(apart[number].argmin())))
        apart[:, pairs[-1][1]] = math.inf
    lowest = cut.score + margin
    if max(map(len, scores)) >= cut.most:
        lowest = max(lowest, min(float(score.min()) for score in scores if len(score)) + margin)
    near = [n for n, pair in enumerate(pairs) if max(scores[0][pair[0]], scores[1][pair[1]]) <= lowest]
    left = set(range(len(pairs))) - {n for n in near if _is_another(expected, got, pairs[n])}
    pairs = [pairs[n] for n in sorted(left)]
    for side in (0, 1):
        alone = set(range(len(scores[side]))) - {pair[side] for pair in pairs}
        if any(not scores[side][number] <= lowest for number in alone):
            return None
    numbers = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
    return numbers[:, 0], numbers[:, 1]


def _is_another(expected: Mapping[str, Tensor], got: Mapping[str, Tensor], pair: tuple[int, int]) -> bool:
    """Whether a pair is of two objects: another class, or boxes that are apart."""
    if expected["labels"][pair[0]] != got["labels"][pair[1]]:
        return True
    return not bool((expected["boxes"][pair[0]] - got["boxes"][pair[1]]).abs().max() <= 1)


def _prediction_rows(
    model: nn.Module, exported: ExportedModel, picture: Tensor, tolerance: Tolerance, cut: Cut
) -> Iterator[Row]:
    """Compare what both say of one picture that was twice as small before."""
    size = picture.shape[-2], picture.shape[-1]
    original = size[0] * 2 + 1, size[1] * 2
    batch: list[Sample] = [{"image": picture, "original_height": original[0], "original_width": original[1]}]
    with torch.no_grad():
        expected: Prediction = model(batch)[0]
    got = exported(batch)[0]
    tensors: list[dict[str, Tensor]] = [
        {name: value.cpu() for name, value in one.items() if isinstance(value, Tensor)}
        for one in (expected, got)
    ]
    if "boxes" in expected:
        rows: Iterator[Row] = _detection_rows(tensors[0], tensors[1], original, tolerance, cut)
        yield from (row._replace(size=size, output=f"predicted {row.output}") for row in rows)
        return
    for name, value in tensors[0].items():
        other = tensors[1][name]
        if name == "sem_seg":  # a pixel or two may lie between two classes
            wrong = int((value != other).sum()) if value.shape == other.shape else value.numel()
            share = 1 - wrong / value.numel()
            good = share >= tolerance.agreement or wrong <= 2
            yield Row(size, 1, f"predicted {name}", math.nan, share, good)
        else:
            worst = _difference(value, other)
            yield Row(size, 1, f"predicted {name}", worst, math.nan, _within(worst, tolerance.difference))


def _resized(picture: Tensor, size: tuple[int, int]) -> Tensor:
    if picture.shape[-2:] == size:
        return picture
    resized = F.interpolate(picture[None].float(), size, mode="bilinear", antialias=True)
    return resized[0].round().clamp(0, 255).to(torch.uint8)


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2g}"


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return list(value) if isinstance(value, tuple) else value
