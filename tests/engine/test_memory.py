"""How many images fit into memory: the arithmetic, and what is measured against the real memory."""

import pytest
import torch
from running import run_afresh

from res2net_dense.engine.memory import (
    SHARE,
    bytes_of_training,
    fit_images,
    free_memory,
    largest_sample,
)  # fmt: skip

GB = 10**9


def step_of(fixed, each, free=None):
    def step(images):
        size = fixed + each * images
        if free is not None and size > free:
            raise torch.OutOfMemoryError("none left")
        return size

    return step


def test_a_linear_need_is_found():
    found = fit_images(step_of(GB, 2 * GB), free=100 * GB, fixed=3 * GB, most=1000, is_exact=False)
    assert (found.fixed, found.each) == (4 * GB, 2 * GB)
    assert found.images == (SHARE * 100 - 4) // 2


def test_no_more_than_wanted():
    assert fit_images(step_of(0, 1), free=GB, fixed=0, most=16, is_exact=False).images == 16


def test_nothing_fits():
    assert fit_images(step_of(0, GB), free=GB, fixed=2 * GB, most=16, is_exact=False).images == 0
    step = step_of(2 * GB, GB, free=2 * GB)
    assert fit_images(step, free=2 * GB, fixed=0, most=16, is_exact=True).images == 0


def test_a_number_that_fails_is_lowered():
    def step(images):  # memory that does not grow evenly
        if images > 20:
            raise torch.OutOfMemoryError("none left")
        return images * GB

    found = fit_images(step, free=100 * GB, fixed=0, most=1000, is_exact=True)
    assert 15 <= found.images <= 20


def test_one_image_where_two_are_too_many():
    assert fit_images(step_of(0, GB, free=GB), free=GB, fixed=0, most=16, is_exact=True).images == 1


@pytest.mark.parametrize(("name", "factor"), [("sgd", 3), ("adamw", 4)])
def test_what_a_training_holds_is_what_torch_holds(name, factor):
    from res2net_dense.engine.optim import build_optimizer

    model = torch.nn.Linear(100, 100)
    optimizer = build_optimizer(model, name=name, lr=0.1)
    model(torch.ones(1, 100)).sum().backward()
    optimizer.step()
    held = [*model.parameters(), *(p.grad for p in model.parameters())]
    held += [v for state in optimizer.state.values() for v in state.values() if v.numel() > 1]
    expected = bytes_of_training(model, optimizer=name, has_average=False)
    assert expected == sum(one.nbytes for one in held) == factor * 10100 * 4


def test_the_largest_sample_has_the_most_pixels_then_objects():
    def sample(height, width, objects):
        return {"image": torch.zeros(3, height, width), "boxes": torch.zeros(objects, 4)}

    batches = [[sample(4, 4, 9), sample(8, 4, 1)], [sample(4, 8, 2)]]
    assert largest_sample(batches) is batches[1][0]


def test_this_machine_has_memory():
    assert 10**8 < free_memory(torch.device("cpu")) < 10**14


CODE = """
import json, sys, torch
sys.path.insert(0, "tests")
from pathlib import Path
from res2net_dense import create_backbone
from res2net_dense.engine.memory import bytes_of_step
torch.set_num_threads(1)

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = create_backbone("res2net50_14w_8s")
    def forward(self, batch):
        images = torch.stack([one["image"] for one in batch])
        return {"loss": sum(out.square().mean() for out in self.body(images).values())}

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024

net = Net().train()
sample = {"image": torch.rand(3, 224, 224)}
said = bytes_of_step(net, [sample] * 2, device=torch.device("cpu"), precision="fp32")
before = peak()
more = bytes_of_step(net, [sample] * 12, device=torch.device("cpu"), precision="fp32")
print(json.dumps([said, more, peak() - before]))
"""


@pytest.mark.slow
def test_the_estimate_is_near_the_real_use():
    """What ten more images take beyond the peak with two."""
    two, twelve, taken = run_afresh(CODE)
    assert twelve == pytest.approx(6 * two, rel=0.02)
    assert taken == pytest.approx(twelve - two, rel=0.35), (two, twelve, taken)
