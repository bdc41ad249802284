"""What `res2net-dense benchmark` prints of what it has measured."""

from __future__ import annotations

from typing import Any

from res2net_dense.deploy.benchmark import Ratio
from res2net_dense.evaluation.tables import align


def heading(document: dict[str, Any]) -> str:
    """Where and how it was measured."""
    machine, settings = document["machine"], document["settings"]
    where = machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} threads"
    return (
        f"{where}, torch {machine['torch']}, res2net_dense {document['version']}, {document['date']}\n"
        f"{settings['warmup']} rounds to warm up, then {settings['repeats']}; of ratios the median and the "
        "middle half of the rounds"
    )


def table(result: dict[str, Any]) -> str:
    """One setting as text."""
    work = "forward and backward, " if result["learning"] else ""
    height, width = result["size"]
    rivals = list(dict.fromkeys(name for row in result["rows"] for name in row["over"]))
    cells = [
        [
            "",
            "median",
            "p95",
            "",
            "peak",
            "differs",
            "times as fast as",
            *["time over that of"] * len(rivals),
        ],
        [
            "",
            "ms",
            "ms",
            "img/s",
            "MB",
            "by",
            result["baseline"],
            *(f"{rival}, same way" for rival in rivals),
        ],
    ]
    for row in result["rows"]:
        peak = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.0f}"
        apart = next(iter(row["differences"].values()))
        times = [row["median_ms"], row["p95_ms"], row["images_per_second"]]
        cells.append([row["label"], *(f"{time:.1f}" for time in times), peak, f"{apart:.0e}"])
        cells[-1].append(str(Ratio(**row["speedup"])))
        cells[-1] += [str(Ratio(**row["over"][rival])) if rival in row["over"] else "" for rival in rivals]
    title = (
        f"{result['name']}, {work}batch {result['batch']}, {height}x{width}: "
        f"{result['parameters'] / 1e6:.2f} M parameters, {result['macs'] / 1e9:.2f} GMACs a picture forward"
    )
    left_out = [f"left out: {label}: {reason}" for label, reason in result["left_out"].items()]
    return "\n".join([title, align(cells), *left_out])
