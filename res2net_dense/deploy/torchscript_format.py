"""TorchScript files, which are traced. They are programs: load only those of people you trust."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import torch
import torchvision  # noqa: F401  # some files contain its operators, such as deformable convolutions and NMS

from res2net_dense.deploy.description import METADATA_KEY, Description, Run
from res2net_dense.deploy.quiet import quiet
from res2net_dense.deploy.torch_export_format import example
from res2net_dense.errors import ExportError, one_line
from res2net_dense.models.graphs import Graph

SUFFIX = ".torchscript"


def check_installed() -> None:
    """PyTorch is all that is needed."""


def write(graph: Graph, path: Path, description: Description) -> None:
    """See `export.Format`."""
    images = example(graph, description)
    try:
        # `check_trace` would compare once what the parity gate compares anyway.
        traced = torch.jit.trace(graph, images, check_trace=False)  # type: ignore[no-untyped-call]
    except Exception as error:  # whatever the network raises
        raise ExportError(f"this network cannot be traced ({one_line(error)})") from error
    file, rest = io.BytesIO(), io.BytesIO()  # PyTorch's own writer aborts the program when the disk is full
    torch.jit.save(traced, file, _extra_files={METADATA_KEY: description.model_dump_json()})
    # Leave out the lines of source that its layers come from, and the paths of their files.
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(rest, "w", zipfile.ZIP_STORED) as archive:
        for entry in source.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                archive.writestr(entry.filename, source.read(entry))
    path.write_bytes(rest.getbuffer())


def open_file(path: Path) -> tuple[str | None, Run]:
    """See `export.Format`."""
    extra = {METADATA_KEY: b""}
    with quiet():  # TorchScript as a whole is deprecated
        module = torch.jit.load(str(path), map_location="cpu", _extra_files=extra)  # type: ignore[no-untyped-call]
    return extra[METADATA_KEY].decode(), lambda images: list(module(images))
