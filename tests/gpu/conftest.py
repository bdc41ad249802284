"""What tests of CUDA share: the device, one process in a group, and tiny configs on it.

Every test runs on a CUDA device (marked `gpu`: `make gpu`, or `pytest -m gpu`) and again on the CPU (`slow`),
so that its own mistakes are found where there is no GPU.
"""

import socket

import pytest
import torch
from safetensors.torch import load_file
from tiny_tasks import write_weights
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from res2net_dense.config import load_config
from res2net_dense.engine import distributed as ours
from res2net_dense.tasks import get_task


@pytest.fixture(
    params=[pytest.param("cuda", marks=pytest.mark.gpu), pytest.param("cpu", marks=pytest.mark.slow)]
)
def device(request, monkeypatch):
    """The device of a test, without TF32; afterwards what a run has switched on is off."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, by the first deterministic product
    threads, tf32 = torch.get_num_threads(), torch.backends.cudnn.allow_tf32  # matrix products have it off
    torch.backends.cudnn.allow_tf32 = False
    yield torch.device(request.param, 0) if request.param == "cuda" else torch.device("cpu")
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.allow_tf32 = tf32
    torch.set_num_threads(threads)


@pytest.fixture
def group(device):
    """This process as a group of one: NCCL on CUDA, gloo on a CPU."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, init_method=address, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.fixture
def wrapped(group, device, monkeypatch):
    """Models that are trained are wrapped in DDP, as they are with several processes."""
    places = [device.index] if device.type == "cuda" else None
    monkeypatch.setattr(ours, "wrap", lambda model: DistributedDataParallel(model, device_ids=places))


@pytest.fixture
def prepared(tiny, tmp_path):
    """The config of a task's tiny run, ready, with changes as on a command line."""

    def prepare(task, *changes):
        few = ["data.workers=0", f"runtime.output_dir={tmp_path / 'run'}"]
        return get_task(task).prepare(load_config(str(tiny(task)), [*few, *changes]))

    return prepare


@pytest.fixture
def learned(tiny, prepared, tmp_path):
    """A task's tiny config, and its model on the CPU, as if trained."""

    def load(task, *changes):
        config = prepared(task, *changes)
        write_weights(tiny(task), tmp_path / "weights.safetensors", sure=True)
        model = get_task(task).build_model(config, load_weights=False)
        model.load_state_dict(load_file(tmp_path / "weights.safetensors"))
        return config, model.eval()

    return load
