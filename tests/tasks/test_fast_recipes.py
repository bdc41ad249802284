"""The `_fast` twins of the COCO recipes: the same run in bfloat16 and channels_last, which act."""

import pytest
import torch
from networks import TINY
from torch import nn

from res2net_dense.config import config_to_dict, load_config
from res2net_dense.engine.trainer import LoopOptions, Trainer
from res2net_dense.tasks import get_task
from res2net_dense.tasks.settings import updated
from res2net_dense.tasks.training import build_state

RECIPES = [f"{kind}_rcnn_res2net{depth}" for kind in ("mask", "faster") for depth in (50, 101)]
SMALL = [
    "backbone.weights=null", f"backbone.name={TINY}", "model.num_classes=null", "model.fpn_channels=32",
    "model.box_head_dim=32", "model.anchor_sizes=[8, 16, 32, 64, 128]", "data.min_size_train=[64]",
    "data.max_size_train=96", "data.workers=0", "train.batch_size=2", "train.schedule={name: constant}",
    "train.optimizer.lr=0.1",
]  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_twin_is_its_recipe_in_half_precision(recipe):
    slow, fast = (config_to_dict(load_config(name)) for name in (recipe, f"{recipe}_fast"))
    assert fast["train"].pop("precision") == "bf16"
    assert fast["train"].pop("channels_last") is True
    assert fast["runtime"].pop("output_dir") == f"output/{recipe}_fast"
    del slow["train"]["precision"], slow["train"]["channels_last"], slow["runtime"]["output_dir"]
    assert fast == slow


@pytest.mark.parametrize("recipe", RECIPES[::2])
def test_a_twin_trains_and_its_settings_act(recipe, toy_set):
    folder = toy_set("detection")
    places = f"{{images: {folder}/train, annotations: {folder}/annotations/train.json}}"
    config = load_config(f"{recipe}_fast", [*SMALL, f"data.train={places}", "data.val=null"])
    task = get_task("detection")
    config = task.prepare(config, weights=False)
    state = build_state(config, torch.device("cpu"), load_weights=False)
    convolution = state.model.backbone.fpn_output2
    assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
    before = convolution.weight.detach().clone()
    seen = []
    for layer in (convolution, state.model.roi_heads.box_predictor.cls_score):
        layer.register_forward_hook(lambda module, inputs, output: seen.append((module, output)))
    options = LoopOptions(2, precision=config.train.precision)
    Trainer(state, task.build_train_loader(config), lambda _: 1.0, options).run()
    assert state.iteration == 2
    assert {output.dtype for _, output in seen} == {torch.bfloat16}
    maps = [output for module, output in seen if isinstance(module, nn.Conv2d)]
    assert all(one.is_contiguous(memory_format=torch.channels_last) for one in maps)
    assert convolution.weight.dtype == convolution.weight.grad.dtype == torch.float32
    assert not torch.equal(convolution.weight, before)
    slow = build_state(
        updated(config, train={"channels_last": False}), torch.device("cpu"), load_weights=False
    )
    assert not slow.model.backbone.fpn_output2.weight.is_contiguous(memory_format=torch.channels_last)


def test_one_graph_serves_all_sizes(toy_set, monkeypatch):
    """Of the backbone and the feature pyramid together, without a break."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compile = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda call, **options: compile(call, backend=backend, fullgraph=True, **options)
    )
    folder = toy_set("detection")
    places = f"{{images: {folder}/train, annotations: {folder}/annotations/train.json}}"
    config = load_config("mask_rcnn_res2net50_fast", [*SMALL, f"data.train={places}", "data.val=null"])
    config = get_task("detection").prepare(config, weights=False)
    torch._dynamo.reset()
    compiled, plain = (
        build_state(updated(config, train={"compile": one}), torch.device("cpu"), load_weights=False).model
        for one in (True, False)
    )
    for height, width in ((64, 96), (96, 64), (96, 96), (128, 96), (160, 224)):
        image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
        sample = {
            "image": image, "original_height": height, "original_width": width,
            "boxes": torch.tensor([[8.0, 8, 40, 40]]), "labels": torch.tensor([1]),
            "masks": torch.ones(1, height, width, dtype=torch.bool),
        }  # fmt: skip
        found, expected = [], []
        for model, losses in ((compiled, found), (plain, expected)):
            torch.manual_seed(0)
            losses += model.train()([sample, sample]).values()
        torch.testing.assert_close(found, expected)
    assert len(graphs) == 1
    assert "upsample" in graphs[0].code or "interpolate" in graphs[0].code  # the pyramid is in it
