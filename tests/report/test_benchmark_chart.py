"""Bars as long as the speeds, the first on top."""

import io
import sys

import pytest
from PIL import Image

from res2net_dense.errors import ConfigError, MissingDependencyError
from res2net_dense.report.benchmark_chart import plot_benchmark


def row(net, way, speed, images, spread=0.1):
    return {
        "label": f"{net} {way} fp32", "net": net, "format": way, "dtype": "fp32", "images_per_second": images,
        "speedup": {"low": speed - spread, "median": speed, "high": speed + spread},
    }  # fmt: skip


def result(name="res2net50_26w_4s", batch=1, learning=False, rows=None):
    rows = rows or [
        row("timm", "eager", 1.0, 10),
        row("ours", "optimized", 2.5, 25),
        row("resnet50", "eager", 1.5, 15),
    ]
    return {
        "name": name, "batch": batch, "size": [224, 320], "learning": learning, "rows": rows,
        "baseline": rows[0]["label"], "reference": "timm",
    }  # fmt: skip


def shown(figure):
    return [axes for axes in figure.axes if axes.get_visible()]


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ConfigError, match="no results"):
        plot_benchmark([])


def test_without_matplotlib_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r"matplotlib.*pip install") as error:
        plot_benchmark([result()])
    assert "\n" not in str(error.value)


def test_bars_are_the_speeds_and_the_first_is_on_top():
    (axes,) = shown(plot_benchmark([result()]))
    assert [bar.get_width() for bar in axes.patches] == [1.0, 2.5, 1.5]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "timm eager fp32", "ours optimized fp32", "resnet50 eager fp32",
    ]  # fmt: skip
    below, above = axes.get_ylim()
    assert above < axes.patches[0].get_y() < axes.patches[1].get_y() < below
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["1.00×  10 img/s", "2.50×  25 img/s", "1.50×  15 img/s"]
    lines = [list(line.get_xdata()) for line in axes.lines[:3]]
    assert lines == [pytest.approx([0.9, 1.1]), pytest.approx([2.4, 2.6]), pytest.approx([1.4, 1.6])]
    assert axes.get_title(loc="left") == "res2net50_26w_4s, batch 1, 224×320"
    assert "timm eager fp32" in axes.get_xlabel()


def test_whose_bar_it_is_can_be_seen():
    many = [row("timm", "eager", 1, 1), row("timm", "compiled", 1, 1), row("ours", "eager", 1, 1)]
    many += [row(f"net{number}", "eager", 1, 1) for number in range(6)]
    (axes,) = shown(plot_benchmark([result(rows=many)]))
    colours = [bar.get_facecolor() for bar in axes.patches]
    assert len(set(colours[:7])) == 7


def test_settings_of_one_network_stand_beside_each_other():
    figure = plot_benchmark(
        [result(), result(batch=8), result("resnet50", learning=True)], caption="a machine"
    )
    first, second, third = shown(figure)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    assert Image.open(file).width > 600
    assert first.get_position().y0 == pytest.approx(second.get_position().y0)
    assert first.get_position().x0 < second.get_position().x0
    assert third.get_position().y1 < first.get_position().y0
    assert third.get_title(loc="left") == "resnet50, forward and backward, batch 1, 224×320"
    for axes in (first, second, third):  # no text leaves its panel or lies over another
        boxes = [text.get_window_extent() for text in axes.texts]
        assert max(box.x1 for box in boxes) <= axes.get_window_extent().x1
        assert not any(a.overlaps(b) for a, b in zip(boxes, boxes[1:], strict=False))
