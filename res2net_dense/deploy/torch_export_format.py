"""Files of torch.export (.pt2), and the programs that they hold, from which ONNX files are made as well.

They are programs of PyTorch operators, some of which read and write files, and their sizes are expressions
that sympy evaluates: load only those of people you trust. Nothing is unpickled: a file in which PyTorch would
find pickled objects or compiled libraries is refused.
"""

from __future__ import annotations

import io
import json
import logging
import zipfile
from pathlib import Path

import torch
import torchvision  # noqa: F401  # some files contain its operators, such as deformable convolutions and NMS
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as symbolic_shapes

from res2net_dense.deploy.description import METADATA_KEY, Description, Run
from res2net_dense.deploy.quiet import quiet
from res2net_dense.errors import ExportError, one_line
from res2net_dense.models.graphs import Graph

SUFFIX = ".pt2"


def check_installed() -> None:
    """PyTorch is all that is needed."""


def write(graph: Graph, path: Path, description: Description) -> None:
    """See `export.Format`."""
    if graph.by_tracing:
        raise ExportError(
            "torch.export cannot take a detector, whose work depends on what it finds: choose onnx, "
            "torchscript or openvino"
        )
    file = io.BytesIO()  # PyTorch's own writer aborts the program when the disk is full
    torch.export.save(
        program(graph, description), file, extra_files={METADATA_KEY: description.model_dump_json()}
    )
    path.write_bytes(file.getbuffer())


def open_file(path: Path) -> tuple[str | None, Run]:
    """See `export.Format`."""
    _check_nothing_is_pickled(path)
    extra = {METADATA_KEY: ""}
    with quiet(logging.CRITICAL):  # it logs the errors that it raises
        module = torch.export.load(path, extra_files=extra).module()
    return extra[METADATA_KEY], lambda images: list(module(images))


def program(graph: Graph, description: Description) -> ExportedProgram:
    """The whole network as a program, for sizes and numbers of images as described."""
    dims = dict.fromkeys(description.free_axes, Dim.DYNAMIC)
    # Otherwise one image, or one row, would be another program than two: strides differ.
    with symbolic_shapes.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]  # set at import
        try:
            result = torch.export.export(graph, (example(graph, description),), dynamic_shapes=(dims,))
        except Exception as error:  # it raises nearly every type
            raise ExportError(f"torch.export cannot take this network ({one_line(error)})") from error
    for node in result.graph.nodes:
        node.meta.pop("stack_trace", None)  # it names folders of this machine
    return result


def example(graph: Graph, description: Description) -> Tensor:
    """Images of noise as the file takes them."""
    size = description.size or graph.example_size
    noise = torch.Generator().manual_seed(0)
    shape = (description.batch or 2, description.channels, *size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=noise).to(description.dtype)


def _check_nothing_is_pickled(path: Path) -> None:
    """Refuse a file of which torch.export would unpickle objects or load libraries."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        # PyTorch takes any other layout for that of an older version, which kept pickles.
        if len({name.partition("/")[0] for name in names}) != 1 or not all("/" in name for name in names):
            raise _refused(path, "another layout than that of torch.export")
        for name in names:
            place = name.partition("/")[2]
            if place.startswith("data/sample_inputs/"):
                try:
                    torch.load(io.BytesIO(archive.read(name)), weights_only=True)
                except Exception:  # torch.export would read it again, as a pickle that may do anything
                    raise _refused(path, place) from None
            pickled = place.startswith(("data/weights/", "data/constants/")) and (
                place.endswith(".pt")
                or (place.endswith("_config.json") and _names_pickles(archive.read(name)))
            )
            if pickled or place.startswith("data/aotinductor/"):
                raise _refused(path, place)


def _names_pickles(config: bytes) -> bool:
    return any(entry.get("use_pickle") is not False for entry in json.loads(config)["config"].values())


def _refused(path: Path, place: str) -> ExportError:
    return ExportError(
        f"{path} would run code while loading ({place}), which no export of ours does: export the model again"
    )
