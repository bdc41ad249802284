"""Evaluation and rewrites on CUDA: the results of the CPU, exact in float32, close in half precision, in CUDA
graphs, and from ONNX files.
"""

import copy
from functools import partial

import pytest
import torch
from comparison import built
from exporting import description_of, graph_of, tiny_model
from networks import TINY, TINY_RESNET, TINY_V1B
from tiny_runs import TINY_RUNS
from torch import Tensor

from res2net_dense.backbones import create_classifier
from res2net_dense.cli._benchmark import difference
from res2net_dense.deploy.export import export
from res2net_dense.deploy.parity import synthetic_images
from res2net_dense.deploy.rewrite import optimize_for_inference
from res2net_dense.engine.inference import evaluate, mean_losses, predict
from res2net_dense.predictor import Predictor
from res2net_dense.tasks import get_task

every_task = pytest.mark.parametrize("task", TINY_RUNS)
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}
"""Of the largest value."""


def assert_same_predictions(found, expected):
    """But for rounding: of labels and detections a few may be others."""
    if "boxes" in expected:
        assert len(expected["boxes"]) > 5
        assert difference([found], [expected]) <= 0.05
    elif "sem_seg" in expected:
        assert (found["sem_seg"] == expected["sem_seg"]).float().mean() > 0.999
    else:
        (name,) = expected
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-3)


@every_task
def test_evaluation_is_that_of_the_cpu(task, learned, device):
    """Predictions one by one, and the scores; with windows, flips and scales, as the tiny runs have them."""
    config, model = learned(task)
    own = get_task(task)
    outcomes = []
    for place in (torch.device("cpu"), device):
        placed = copy.deepcopy(model).to(place)
        pairs = predict(placed, own.build_eval_loader(config), device=place)
        found = [prediction for _, predictions in pairs for prediction in predictions]
        assert all(v.device.type == "cpu" for one in found for v in one.values() if isinstance(v, Tensor))
        scores = evaluate(
            placed, own.build_eval_loader(config), own.build_evaluator(config), device=place,
            channels_last=True,
        )  # fmt: skip
        outcomes.append((found, scores))
    for found, expected in zip(outcomes[1][0], outcomes[0][0], strict=True):
        assert_same_predictions(found, expected)
    tolerance = 0.01 if task == "saliency" else 1.0  # of 1, of 100: few images, where one decides about much
    assert outcomes[1][1] == pytest.approx(outcomes[0][1], abs=tolerance, nan_ok=True)


@every_task
def test_losses_are_those_of_the_cpu(task, learned, device):
    """Detectors draw boxes on their device; with nearly all of them drawn it hardly matters which."""
    changes = ["model.rpn_batch=4096", "model.roi_batch=4096"] if task == "detection" else []
    config, model = learned(task, *changes)
    loader = partial(get_task(task).build_eval_loader, config, targets=True)
    expected = mean_losses(model, loader(), device="cpu")
    found = mean_losses(copy.deepcopy(model).to(device), loader(), device=device)
    assert found == pytest.approx(expected, rel=0.05 if task == "detection" else 1e-3)


@every_task
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_predictors(task, precision, learned, device, tmp_path):
    """From a file, optimized or under autocast: all keys, finite, at the image's size, on the CPU."""
    config, _ = learned(task)
    predictor = Predictor.load(tmp_path / "weights.safetensors", config=config, device=str(device))
    image = synthetic_images(1, (90, 120))[0]
    dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    predictor.optimize(dtype=dtype)
    prediction = predictor(image)
    assert prediction.keys() >= get_task(task).gives(config) - {"label"}
    for value in prediction.values():
        if isinstance(value, Tensor):
            assert value.device.type == "cpu"
            assert torch.isfinite(value.float()).all()
    predictor.draw(image.permute(1, 2, 0).numpy(), prediction)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("pad_width", [None, 8])
@pytest.mark.parametrize("name", [TINY, TINY_V1B, TINY_RESNET, "res2net50_26w_4s", "res2next50"])
def test_rewritten_networks(name, pad_width, dtype, device):
    """In float32 exact, which also needs that convolutions leave TF32 alone. On a CPU without oneDNN, so that
    it takes PyTorch's operations, too.
    """
    network = built(lambda: create_classifier(name, 10)).eval().to(device)
    images = torch.randn(2, 3, 65, 70, generator=torch.Generator().manual_seed(0)).to(device)
    optimized = optimize_for_inference(network, dtype=dtype, pad_width=pad_width)
    with torch.inference_mode(), torch.backends.mkldnn.flags(enabled=False):
        expected, found = network(images), optimized(images)
    assert found.dtype == torch.float32
    assert found.device == device
    assert difference((found,), (expected,)) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_rewritten_network_in_a_cuda_graph(dtype, device):
    """What was captured gives, for other images too, the numbers of a plain call."""
    network = optimize_for_inference(built(lambda: create_classifier(TINY, 10)).to(device), dtype=dtype)
    images = torch.randn(3, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(device)
    replay = captured(network, images[0])
    for one in images:
        with torch.inference_mode():
            expected = network(one)
        torch.testing.assert_close(replay(one), expected, rtol=1e-3, atol=1e-3)


def captured(network, images):
    """A call that replays one CUDA graph; on a CPU, which has none, a call that also writes to one place."""
    place = images.clone()
    if images.device.type == "cpu":

        def call(new):
            with torch.inference_mode():
                return network(place.copy_(new)).clone()

        return call
    with torch.inference_mode():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                network(place)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = network(place)

    def replay(new):
        with torch.inference_mode():
            place.copy_(new)
            graph.replay()
            return result.clone()

    return replay


@pytest.mark.parametrize("task", ["classification", "semantic_segmentation", "saliency"])
def test_an_onnx_file(task, device, tmp_path):
    """Run by ONNX Runtime where it has CUDA, against the network that was exported."""
    onnxruntime = pytest.importorskip("onnxruntime")
    provider = f"{device.type.upper()}ExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        pytest.skip(f"this onnxruntime has no {provider}: onnxruntime-gpu has")
    graph, path = graph_of(task, tiny_model(task)), tmp_path / "model.onnx"
    export(graph, path, description_of(task, graph, format="onnx"))
    options = {"use_tf32": "0"} if device.type == "cuda" else {}
    session = onnxruntime.InferenceSession(str(path), providers=[(provider, options)])
    assert session.get_providers()[0] == provider
    images = torch.stack(synthetic_images(2, (72, 80)))
    with torch.inference_mode():
        expected = graph.to(device)(images.to(device))[-1].cpu()
    found = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[-1])
    assert difference((found,), (expected,)) < 1e-3
