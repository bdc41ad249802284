"""P17: out of memory says how many images of which sizes in which precision, and what to do; the last
finished iteration is saved.
"""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from res2net_dense.engine.checkpointer import Checkpointer
from res2net_dense.engine.inference import predict
from res2net_dense.engine.trainer import Evaluation
from res2net_dense.errors import OutOfMemoryError
from res2net_dense.types import Sample

sys.path.append(str(Path(__file__).parents[1] / "engine"))
from test_engine_trainer import Net, learn, samples

ERRORS = {
    "GPU": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 1.2 GiB free."),
    "CPU": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 2147483648 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "numpy": MemoryError("Unable to allocate 2.00 GiB for an array with shape (9, 9) and data type float64"),
}
every_error = pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)


class Large(Net):
    """Lacks memory in one of its calls, of training and prediction alike."""

    def __init__(self, error: Exception, at: int = 1) -> None:
        super().__init__()
        self.error, self.left = error, at

    def forward(self, batch: list[Sample]) -> Any:
        self.left -= 1
        if not self.left:
            raise self.error
        return super().forward(batch)


@every_error
def test_in_training(error: Exception, tmp_path: Path) -> None:
    said = (
        r"^out of memory in iteration 3: 4 images so far of 2 micro-batches, height x width 8x8, precision "
        r"fp32 \((2147483648 bytes|2.00 GiB) more were needed\); take a smaller batch [^\n]*last checkpoint$"
    )
    with pytest.raises(OutOfMemoryError, match=said):
        learn(Large(error, at=6), samples(2), iterations=9, accumulate=2, checkpointer=Checkpointer(tmp_path))
    assert [path.name for path in tmp_path.glob("checkpoints/*.pt")] == ["iter_0000002.pt"]


@every_error
def test_in_an_evaluation(error: Exception, tmp_path: Path) -> None:
    def score(model: torch.nn.Module) -> dict[str, float]:
        list(predict(model, [next(samples(2))], device="cpu"))
        return {}

    said = (
        r"^out of memory in predicting 2 images, height x width 8x8, precision fp32 \([^;]*\); take a "
        r"smaller eval.batch_size, smaller images, tiles, or precision bf16$"
    )
    with pytest.raises(OutOfMemoryError, match=said):
        learn(
            Large(error, at=4), samples(2), iterations=9, eval_every=3, evaluation=Evaluation(score),
            checkpointer=Checkpointer(tmp_path),
        )  # fmt: skip
    assert [path.name for path in tmp_path.glob("checkpoints/*.pt")] == ["iter_0000003.pt"]


@every_error
def test_in_what_scores(error: Exception) -> None:
    def score(model: torch.nn.Module) -> dict[str, float]:
        raise error

    with pytest.raises(
        OutOfMemoryError, match="in the evaluation after iteration 3.*smaller eval.batch_size"
    ):
        learn(Net(), samples(2), iterations=9, eval_every=3, evaluation=Evaluation(score))


@every_error
def test_in_prediction(error: Exception) -> None:
    said = r"in predicting 1 image, height x width 8x8, precision bf16 \([^;]*\); take smaller images, tiles"
    with pytest.raises(OutOfMemoryError, match=said):
        list(predict(Large(error), [next(samples(1))], device="cpu", precision="bf16"))


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="^shapes differ$"):
        learn(Large(RuntimeError("shapes differ")), samples(2), iterations=1)
