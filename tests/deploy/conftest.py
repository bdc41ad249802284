"""What the tests of exported files share: the tiny network of each task as a file."""

import pytest
from exporting import description_of, graph_of, tiny_model
from filelock import FileLock

from res2net_dense.deploy.export import FORMATS, export
from res2net_dense.deploy.openvino_format import convert_onnx


@pytest.fixture(scope="session")
def tiny_file(run_folder):
    """The file of a task's `tiny_model`, for any size and number of images; made once a run, when wanted."""
    folder = run_folder / "tiny_files"
    folder.mkdir(exist_ok=True)

    def make(task, format):
        path = folder / f"{task}{FORMATS[format]}"
        with FileLock(f"{folder}.{path.name}.lock"):
            if not path.exists():
                graph = graph_of(task, tiny_model(task))
                description = description_of(task, graph, format=format)
                if format == "openvino":  # the export to ONNX, of which it is made, takes longest
                    convert_onnx(make(task, "onnx"), path, description.model_dump_json())
                else:
                    export(graph, path, description)
        return path

    return make
