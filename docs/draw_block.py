"""Draw docs/res2net_block.svg: ResNet's bottleneck, the Res2Net block and its stage block side by side.

python docs/draw_block.py
"""

from __future__ import annotations

from pathlib import Path

INK, MUTED = "#1f2933", "#52606d"
CONV, POOL = "#cfe3fb", "#fbe0c3"
SPLITS = ("#d3f0dd", "#fdf0b8", "#fbd5d5", "#e3d7f7")
COLUMNS = (50, 140, 230, 320)
LANE = 405
"""Where the shortcut runs, from the panel's left edge."""


class Panel:
    """One block, drawn downwards; x counts from the panel's left edge, y from the top of the drawing."""

    def __init__(self, left: int, middle: int, title: str, subtitle: str) -> None:
        self.left = left
        self.parts: list[str] = []
        self.text(middle, 38, title, size=20, bold=True)
        self.text(middle, 62, subtitle, size=14, color=MUTED)

    def text(
        self, x: float, y: float, text: str, *, size: int = 15, bold: bool = False, color: str = INK
    ) -> None:
        weight = ' font-weight="bold"' if bold else ""
        self.parts.append(
            f'<text x="{self.left + x:g}" y="{y:g}" font-size="{size}"{weight} fill="{color}">{text}</text>'
        )

    def box(self, x: float, y: float, width: float, height: float, text: str, fill: str) -> None:
        """A box with its middle at `x` and its top at `y`; a line break in `text` gives two lines."""
        self.parts.append(
            f'<rect x="{self.left + x - width / 2:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5" '
            f'fill="{fill}" stroke="{INK}"/>'
        )
        lines = text.split("\n")
        for number, line in enumerate(lines):
            size = 15 if width > 100 else 13
            self.text(x, y + height / 2 + 5 + 18 * (number - (len(lines) - 1) / 2), line, size=size)

    def arrow(self, *points: tuple[float, float]) -> None:
        path = " L".join(f"{self.left + x:g} {y:g}" for x, y in points)
        self.parts.append(
            f'<path d="M{path}" fill="none" stroke="{INK}" stroke-width="1.6" marker-end="url(#a)"/>'
        )

    def plus(self, x: float, y: float) -> None:
        x += self.left
        self.parts.append(
            f'<g fill="white" stroke="{INK}" stroke-width="1.6"><circle cx="{x:g}" cy="{y:g}" r="11"/>'
            f'<path d="M{x - 6:g} {y:g}h12m-6 -6v12"/></g>'
        )

    def frame(self, middle: float, width: float, lane: float, shortcut: str, convs: tuple[str, str]) -> None:
        """What the three blocks share: the 1x1 convolutions at both ends, the shortcut and the sum."""
        self.text(middle, 96, "input")
        self.arrow((middle, 102), (middle, 138))
        self.box(middle, 140, width, 36, convs[0], CONV)
        self.box(middle, 560, width, 36, convs[1], CONV)
        self.arrow((middle, 596), (middle, 625))
        self.plus(middle, 638)
        self.arrow((middle, 649), (middle, 684))
        self.text(middle + 32, 671, "ReLU", size=14)
        self.text(middle, 704, "output")
        self.arrow((middle, 118), (lane, 118), (lane, 638), (middle + 13, 638))
        if shortcut:
            self.box(lane, 340, 80, 58, shortcut, CONV)

    def splits(self) -> None:
        """The four splits under the first convolution and what becomes of them above the last."""
        for number, (x, fill) in enumerate(zip(COLUMNS, SPLITS, strict=True), 1):
            self.arrow((x, 176), (x, 198))
            self.box(x, 200, 60, 28, f"x{number}", fill)
            self.box(x, 506, 60, 28, f"y{number}", fill)
            self.arrow((x, 534), (x, 558))


def resnet() -> Panel:
    panel = Panel(20, 105, "ResNet bottleneck", "scale 1, for comparison")
    panel.frame(95, 170, 205, "", ("1×1 conv → w", "1×1 conv → 4p"))
    panel.arrow((95, 176), (95, 338))
    panel.box(95, 340, 170, 54, "3×3 conv\non all w channels", CONV)
    panel.arrow((95, 394), (95, 558))
    return panel


def normal_block() -> Panel:
    panel = Panel(290, 210, "normal block", "each split also sees its neighbour’s result")
    panel.frame(185, 340, LANE, "", ("1×1 conv → 4w, cut into 4 splits of w", "concatenate, 1×1 conv → 4p"))
    panel.splits()
    tops = (252, 336, 420)
    panel.arrow((COLUMNS[0], 228), (COLUMNS[0], tops[0] - 2))
    for number, top in enumerate(tops):
        x = COLUMNS[number]
        panel.box(x, top, 64, 36, "3×3", CONV)
        panel.arrow((x, top + 36), (x, 504))
        if number < 2:
            right, y = COLUMNS[number + 1], top + 58
            panel.arrow((right, 228), (right, y - 13))
            panel.arrow((x, y), (right - 13, y))
            panel.plus(right, y)
            panel.arrow((right, y + 11), (right, tops[number + 1] - 2))
    panel.arrow((COLUMNS[3], 228), (COLUMNS[3], 504))
    panel.text(COLUMNS[3] + 42, 370, "untouched", size=13, color=MUTED)
    return panel


def stage_block() -> Panel:
    panel = Panel(760, 230, "stage block", "first block of every stage: splits are independent")
    panel.frame(
        185,
        340,
        LANE + 20,
        "1×1 conv\n/ stride",
        ("1×1 conv → 4w, cut into 4 splits of w", "concatenate, 1×1 conv → 4p"),
    )
    panel.splits()
    for number, x in enumerate(COLUMNS):
        panel.arrow((x, 228), (x, 338))
        text, fill = ("3×3 mean\n/ stride", POOL) if number == 3 else ("3×3 conv\n/ stride", CONV)
        panel.box(x, 340, 80, 58, text, fill)
        panel.arrow((x, 398), (x, 504))
    return panel


def main() -> None:
    parts = [part for panel in (resnet(), normal_block(), stage_block()) for part in panel.parts]
    notes = [
        "Every convolution is followed by batch norm, and all but the last 1×1 (and the shortcut’s) by a "
        "ReLU. w: width of a split, p: planes of the stage (64, 128, 256, 512).",
        "The stride of a stage block is 2, but 1 in the first stage and where a stage is dilated; "
        "v1b averages in the shortcut before a 1×1 conv of stride 1.",
    ]
    for number, note in enumerate(notes):
        parts.append(f'<text x="620" y="{740 + 22 * number}" font-size="14" fill="{MUTED}">{note}</text>')
    arrow_head = (
        '<defs><marker id="a" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
        f'orient="auto"><path d="M0 1L10 5L0 9z" fill="{INK}"/></marker></defs>'
    )
    lines = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1240 780" text-anchor="middle" '
        'font-family="DejaVu Sans, Verdana, Helvetica, Arial, sans-serif">',
        "<title>ResNet's bottleneck, the Res2Net block and its stage block, scale 4</title>",
        '<rect width="1240" height="780" fill="white"/>',
        arrow_head,
        *parts,
        "</svg>",
    ]
    (Path(__file__).parent / "res2net_block.svg").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
