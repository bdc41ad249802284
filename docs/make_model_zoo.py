"""Write docs/model_zoo.md from the tables of networks and weights.

python docs/make_model_zoo.py      (or: make docs)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from res2net_dense.backbones.registry import ALIASES, ARCHITECTURES
from res2net_dense.backbones.weights import WEIGHTS, Weights

TARGET = Path(__file__).with_name("model_zoo.md")

INTRODUCTION = """\
# Networks and published weights

Written by `make docs` from `ARCHITECTURES` and `WEIGHTS` in `res2net_dense/backbones/`; a test keeps it
current.

## How `weights=` works

Wherever weights are asked for (`backbone.weights` in a config, `weights=` in Python) these are understood:

| value | what it means |
|---|---|
| `imagenet` | the first file of the network below |
| a tag: `in1k`, `tv2_in1k` | that file of the network |
| name and tag: `res2net50_26w_4s.in1k` | the same, in full |
| a path: `my/weights.pth` | a file of yours, in any of the dialects below or one of our own |
| `null`, in Python `None` | random weights |

A file is downloaded once into `~/.cache/res2net_dense`, or the folder in the environment variable
`RES2NET_DENSE_CACHE`, and hashed at every use. A download that broke off starts from the beginning; the file
has its name only when its SHA-256 is right. The official place is asked first, then the mirrors, with at most
three requests. Of several processes that want the same file one downloads it.

**Without a connection** the command fails within five seconds and prints the `curl` command to run on another
machine and the path to copy the file to. A file from another place with the same weights has other bytes
(timm's on huggingface.co, for example): do not put it into the cache, give its path.

**Without a published hash** (Paddle's files) nothing is downloaded by itself. Such a file is also a pickle,
which can run code when it is read: download it yourself, and read it with `trust_pickle=True`
(`--trust-pickle` in the tools) if you trust where it came from.

The weights are their authors' and not part of this project. Their licence says whether you may use them for
your purpose, and most come without one of their own.
"""

FIGURES = """\
## Files: figures

Accuracy in percent on ImageNet's validation set (Imagenette's for `holocron_imagenette`), as published with
the file, and as timm measured the same weights. Images are RGB, the shorter side resized (bilinear) to the
first number of pixels, the centre of the second cut out, mean 123.675 116.28 103.53, standard deviation
58.395 57.12 57.375 on values from 0 to 255. The first file of a network is what `imagenet` means. Parameters
are those of the network with a head for the classes; the authors' files of DLA networks (`in1k`) hold 297,472
more, in three projections that nothing uses. Of most files only the first eight digits of the SHA-256 are
known, from their names.
"""

USE = """\
## Files: how to use them

Some files need a network built with other options than the defaults, although the names of their tensors do
not tell ([the block](res2net_block.md) explains each). Taken by tag they are checked for that; the dialect is
whose names the tensors have.
"""


def model_zoo() -> str:
    """Return the page."""
    wrong = [row.key for row in WEIGHTS.values() if (row.mean, row.std) != (Weights.mean, Weights.std)]
    if wrong or any(row.interpolation != "bilinear" for row in WEIGHTS.values()):
        raise ValueError(f"the page says that all files share mean, std and bilinear resizing: {wrong}")
    head = ("weights", "top-1", "top-5", "timm's", "pixels", "classes", "parameters M", "bytes", "SHA-256")
    return "\n".join(
        [
            INTRODUCTION,
            "## Networks\n",
            "Published figures for 1000 classes at 224x224 pixels, 10 classes at 32x32 for `res2next29`.\n",
            _table(("name", "also known as", "parameters M", "GMACs", "files"), map(_network, ARCHITECTURES)),
            FIGURES,
            _table(head, map(_figures, WEIGHTS.values())),
            USE,
            _table(("weights", "options needed", "dialect", "recipe"), map(_use, WEIGHTS.values())),
            _remarks(),
            "## Files: where they are\n",
            _table(("weights", "official", "mirrors", "other bytes"), map(_places, WEIGHTS.values())),
        ]
    )


def _network(name: str) -> Sequence[object]:
    architecture = ARCHITECTURES[name]
    aliases = ", ".join(f"`{alias}`" for alias, known in ALIASES.items() if known == name)
    files = sum(row.name == name for row in WEIGHTS.values())
    parameters, gmacs = (value and f"{value:.2f}" for value in (architecture.parameters, architecture.gmacs))
    return f"`{name}`", aliases, parameters, gmacs, files or None


def _figures(row: Weights) -> Sequence[object]:
    return (
        f"`{row.key}`",
        row.top1 and f"{row.top1:.2f}",
        row.top5 and f"{row.top5:.2f}",
        row.timm_top1 and f"{row.timm_top1:.2f} / {row.timm_top5:.2f}",
        f"{row.resize_size}, {row.crop_size}",
        row.num_classes,
        f"{row.parameters / 1e6:.2f}",
        row.size and f"{row.size:,}",
        f"`{row.sha256}`" if row.sha256 else "none published",
    )


def _use(row: Weights) -> Sequence[object]:
    options = ", ".join(f"`{option}={value!r}`" for option, value in row.semantics.items())
    return f"`{row.key}`", options, row.dialect, row.recipe


def _remarks() -> str:
    """One line for each licence and remark, with its files."""
    groups: dict[str, list[str]] = {}
    for row in WEIGHTS.values():
        pickled = " The file is a pickle." if row.needs_trust else ""
        groups.setdefault(f"licence {row.licence}. {row.note}{pickled}".strip(), []).append(f"`{row.key}`")
    return "".join(f"* {', '.join(keys)}: {text}\n" for text, keys in groups.items())


def _places(row: Weights) -> Sequence[object]:
    official, *mirrors = (f"[{url.split('/')[2]}]({url})" for url in row.urls)
    hub = f"[{row.hub_id}](https://huggingface.co/{row.hub_id})" if row.hub_id else None
    return f"`{row.key}`", official, ", ".join(mirrors), hub


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    text = (
        "| " + " | ".join("-" if cell in (None, "") else str(cell) for cell in line) + " |" for line in lines
    )
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    TARGET.write_text(model_zoo(), encoding="utf-8")
    print(f"wrote {TARGET}")
