"""`val_loss` of every task: that of its libraries, computed without our loop."""

import pytest
import torch
from tiny_tasks import classification, detection, saliency, segmentation, write_config, write_weights
from torch.nn import functional

from res2net_dense.config import load_config
from res2net_dense.engine.inference import mean_losses
from res2net_dense.tasks import get_task
from res2net_dense.tasks.watching import validation_losses
from res2net_dense.weight_files import open_weights

CPU = torch.device("cpu")


@pytest.fixture
def made(draw_toy, tmp_path):
    """Task, config, a tiny model whose norms have seen images, and the samples of `data.val`."""

    def make(kind, *overrides):
        path = write_config(kind, draw_toy, tmp_path)
        write_weights(path, tmp_path / "weights.safetensors")
        task = get_task(kind)
        config = task.prepare(load_config(path, ["eval.loss=true", *overrides]))
        model = task.build_model(config)
        state = open_weights(tmp_path / "weights.safetensors").state_dict
        model.load_state_dict({name: state[name] for name in model.state_dict()})  # FrozenBN has fewer
        samples = [sample for batch in task.build_eval_loader(config, targets=True) for sample in batch]
        return task, config, model, samples

    return make


def assert_is(found, expected):
    assert {name: value for name, value in found.items() if name in expected} == pytest.approx(
        expected, rel=1e-5
    )
    assert found["val_loss"] == pytest.approx(sum(found.values()) - found["val_loss"], rel=1e-6)


def test_of_a_classifier(made):
    mixed = ["model.mixup_alpha=1", "model.cutmix_alpha=1", "backbone.drop_path_rate=0.5"]
    task, config, model, samples = made(classification, *mixed)
    found = validation_losses(task, config, CPU, model)
    with torch.no_grad():
        logits = torch.stack([one["logits"] for one in model.eval()(samples)])
    labels = torch.tensor([sample["label"] for sample in samples])
    smoothing = config.model.label_smoothing
    loss = float(functional.cross_entropy(logits, labels, label_smoothing=smoothing))
    assert_is(found, {"val_loss/loss_cls": loss})
    assert found["val_loss"] == found["val_loss/loss_cls"]


def test_of_label_maps(made):
    task, config, model, samples = made(segmentation, "model.aux_weight=0")
    samples[0]["sem_seg"][:20] = 255
    found, losses = mean_losses(model, [samples], device=CPU), []
    with torch.no_grad():
        for sample in samples:
            image = model.eval().normalize(sample["image"])[None]
            _, height, width = sample["image"].shape
            logits = model.logits(functional.pad(image, (0, -width % 16, 0, -height % 16)))[
                ..., :height, :width
            ]
            losses.append(float(functional.cross_entropy(logits, sample["sem_seg"][None], ignore_index=255)))
    assert_is(found, {"val_loss/loss_sem_seg": sum(losses) / len(losses)})


def test_of_saliency_maps(made):
    task, config, model, samples = made(saliency, "model.losses={bce: 1.0, iou: 0.0}")
    model.eval()
    found, losses = validation_losses(task, config, CPU, model), []
    with torch.no_grad():
        for sample in samples:
            height, width = sample["image"].shape[-2:]
            whole = {**sample, "original_height": height, "original_width": width}
            probabilities = model([whole])[0]["saliency"]
            losses.append(float(functional.binary_cross_entropy(probabilities, sample["saliency"])))
    assert_is(found, {"val_loss/loss_saliency": sum(losses) / len(losses)})


def test_of_a_detector(made):
    """detectron2 in its training mode, where no layer differs between the modes."""
    task, config, model, samples = made(detection, "backbone.norm=FrozenBN")
    found, rows = validation_losses(task, config, CPU, model), []
    model.train()
    with torch.no_grad():
        for sample in samples:
            torch.manual_seed(0)
            rows.append(model([sample]))
    expected = {f"val_loss/{name}": sum(float(row[name]) for row in rows) / len(rows) for name in rows[0]}
    assert len(expected) == 5
    assert_is(found, expected)


@pytest.mark.parametrize("kind", [classification, segmentation, saliency, detection])
def test_batch_sizes_and_norms_do_not_matter(made, kind):
    """Batch norm in training mode would make each image depend on the others."""
    task, config, model, samples = made(kind)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    one, four = (
        mean_losses(model, [samples[i : i + n] for i in range(0, len(samples), n)], device=CPU)
        for n in (1, 4)
    )
    assert one == four
    assert model.training
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)
    assert all(value > 0 for value in one.values())


def test_tiles_are_images(made):
    task, config, model, samples = made(detection, "data.tiles={size: 64, overlap: 16, min_visible: 0.5}")
    assert len(samples) > 4
    assert validation_losses(task, config, CPU, model) == mean_losses(model, [samples], device=CPU)
