"""Optimizer groups, schedules against detectron2's and torch's, the moving average."""

import copy
import itertools

import pytest
import torch
from torch import nn

from res2net_dense.engine.checkpointer import TrainState, restore
from res2net_dense.engine.optim import Anchor, Ema, build_optimizer, build_schedule, scale_lr
from res2net_dense.errors import CheckpointError, ConfigError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1, bias=False))
        self.backbone_like = nn.GroupNorm(2, 4)
        self.head = nn.Conv2d(4, 4, 1)
        self.tied = nn.Conv2d(4, 4, 1)
        self.tied.weight = self.head.weight
        self.frozen = nn.Conv2d(4, 4, 1).requires_grad_(False)


def test_groups() -> None:
    model = Net()
    factors = {"bias_lr_factor": 2.0, "backbone_lr_factor": 0.5}
    optimizer = build_optimizer(
        model, name="adamw", lr=1.0, weight_decay=0.1, norm_weight_decay=0.0, **factors
    )
    found = {
        id(parameter): (group["lr"], group["weight_decay"], group["initial_lr"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    expected = {
        "backbone.0.weight": (0.5, 0.1),
        "backbone.0.bias": (1.0, 0.1),
        "backbone.1.weight": (0.5, 0.0),
        "backbone.1.bias": (1.0, 0.0),
        "backbone.2.weight": (0.5, 0.1),
        "backbone_like.weight": (1.0, 0.0),
        "backbone_like.bias": (2.0, 0.0),
        "head.weight": (1.0, 0.1),
        "head.bias": (2.0, 0.1),
        "tied.bias": (2.0, 0.1),
    }
    parameters = dict(model.named_parameters())
    assert {name: found[id(parameters[name])][:2] for name in expected} == expected
    assert len(found) == len(expected) == sum(len(group["params"]) for group in optimizer.param_groups)
    assert all(lr == initial for lr, _, initial in found.values())
    assert len(optimizer.param_groups) == len(set(expected.values()))


@pytest.mark.parametrize(
    ("name", "kind"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)]
)
def test_names_are_those_of_torch(name: str, kind: type) -> None:
    """One step is that of torch's optimizer of this name; adam and adamw decay differently."""
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    steps = (
        build_optimizer(ours, name=name, lr=0.1, weight_decay=0.5, momentum=0.0),
        kind(theirs.parameters(), lr=0.1, weight_decay=0.5),
    )
    for model, optimizer in zip((ours, theirs), steps, strict=True):
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_groups_equal_detectron2() -> None:
    solver = pytest.importorskip("detectron2.solver.build")
    model = Net()
    theirs = solver.get_default_optimizer_params(
        model,
        base_lr=0.02,
        weight_decay=1e-4,
        weight_decay_norm=0.0,
        bias_lr_factor=2.0,
        weight_decay_bias=None,
    )
    ours = build_optimizer(model, lr=0.02, weight_decay=1e-4, norm_weight_decay=0.0, bias_lr_factor=2.0)

    def flat(groups: list[dict[str, object]]) -> dict[int, tuple[object, object]]:
        return {id(p): (g.get("lr"), g["weight_decay"]) for g in groups for p in g["params"]}  # type: ignore[attr-defined]

    assert flat(ours.param_groups) == flat(theirs)


def test_nothing_to_train() -> None:
    with pytest.raises(ConfigError, match="no trainable"):
        build_optimizer(nn.ReLU(), lr=0.1)
    assert scale_lr(0.02, 2, 16) == pytest.approx(0.0025)


def torch_values(make: object, iterations: int) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = make(optimizer)  # type: ignore[operator]
    values = []
    for _ in range(iterations):
        values.append(optimizer.param_groups[0]["lr"] / 0.5)
        optimizer.step()
        scheduler.step()
    return values


@pytest.mark.filterwarnings("ignore")
def test_multistep_equals_detectron2() -> None:
    solver = pytest.importorskip("detectron2.solver")
    config = pytest.importorskip("detectron2.config").get_cfg()
    config.SOLVER.MAX_ITER, config.SOLVER.STEPS, config.SOLVER.WARMUP_ITERS = 300, (200, 270), 50
    ours = build_schedule(name="multistep", iterations=300, warmup_iterations=50, milestones=(200, 270))
    values = [ours(iteration) for iteration in range(300)]
    assert values == pytest.approx(
        torch_values(lambda o: solver.build_lr_scheduler(config, o), 300), rel=1e-12
    )
    legacy = torch_values(
        lambda o: solver.lr_scheduler.WarmupMultiStepLR(o, [200, 270], warmup_iters=50), 300
    )
    assert values == pytest.approx(legacy, rel=1e-12)


@pytest.mark.filterwarnings("ignore")
def test_others_equal_torch() -> None:
    from torch.optim import lr_scheduler as reference

    n = 97
    cases = {
        "poly": lambda o: reference.PolynomialLR(o, total_iters=n, power=0.9),
        "cosine": lambda o: reference.CosineAnnealingLR(o, T_max=n),
        "onecycle": lambda o: reference.OneCycleLR(o, max_lr=0.5, total_steps=n),
        "constant": lambda o: reference.ConstantLR(o, factor=1.0),
    }
    for name, make in cases.items():
        ours = build_schedule(name=name, iterations=n)
        assert [ours(i) for i in range(n - 1)] == pytest.approx(torch_values(make, n - 1), rel=1e-9), name
    ours = build_schedule(name="cosine", iterations=n, final_factor=0.1)
    theirs = torch_values(lambda o: reference.CosineAnnealingLR(o, T_max=n, eta_min=0.05), n)
    assert [ours(i) for i in range(n)] == pytest.approx(theirs, rel=1e-9)


def test_schedule_edges() -> None:
    for name in ("multistep", "poly", "cosine", "onecycle", "constant"):
        for iterations in (0, 1, 2, 3):
            values = [build_schedule(name=name, iterations=iterations)(i) for i in range(iterations + 3)]
            assert all(0.0 <= value <= 1.0 for value in values)
    warm = build_schedule(name="poly", iterations=10, warmup_iterations=4, warmup_factor=0.0)
    assert warm(0) == 0.0
    assert warm(2) == pytest.approx(0.5 * 0.8**0.9)


def test_ema() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    ema = Ema(model, decay=0.5)
    start = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for value in model.state_dict().values():
            value.add_(1)
    ema.update(model)
    average = ema.module.state_dict()
    for name, value in start.items():
        # The first decay is 2/11.
        expected = value + (1 if "num_batches" in name else 1 - 2 / 11)
        torch.testing.assert_close(average[name], expected.to(value.dtype))
    for _ in range(100):
        ema.update(model)
    torch.testing.assert_close(dict(ema.module.state_dict()), dict(model.state_dict()))
    assert not any(parameter.requires_grad for parameter in ema.module.parameters())
    with pytest.raises(CheckpointError, match="moving average of the checkpoint does not fit"):
        ema.load_state_dict({"model": {}, "updates": 0})


FALLING = ("poly", "cosine", "onecycle")


@pytest.mark.parametrize("name", [*FALLING, "multistep", "constant"])
def test_an_anchored_curve_goes_on_without_a_jump(name: str) -> None:
    """And never rises; where it ends is where it always ends."""
    settings = {"name": name, "milestones": (20, 60, 90), "warmup_iterations": 5}
    old = build_schedule(iterations=80, **settings)
    for start in (20, 40, 79):
        new = build_schedule(iterations=120, anchor=Anchor(start, old(start)), **settings)
        values = [new(i) for i in range(start, 121)]
        assert values[0] == old(start)
        assert all(after <= before for before, after in itertools.pairwise(values))
        if name in FALLING:
            end = build_schedule(iterations=120, **settings)(120)
            assert values[-1] == pytest.approx(end, abs=1e-12)
            assert values[-2] > end or name == "onecycle"


@pytest.mark.filterwarnings("ignore")
def test_anchored_curves_equal_torch() -> None:
    """A curve from 0.2 at iteration 30 to its end at 97 is torch's own over 67 iterations, times 0.2."""
    from torch.optim import lr_scheduler as reference

    cases = {
        "poly": lambda o: reference.PolynomialLR(o, total_iters=67, power=0.9),
        "cosine": lambda o: reference.CosineAnnealingLR(o, T_max=67),
        "multistep": lambda o: reference.MultiStepLR(o, milestones=[10, 40]),
    }
    for name, make in cases.items():
        ours = build_schedule(name=name, iterations=97, milestones=(25, 40, 70), anchor=Anchor(30, 0.2))
        theirs = [0.2 * value for value in torch_values(make, 66)]
        assert [ours(30 + i) for i in range(66)] == pytest.approx(theirs, rel=1e-9), name
    ours = build_schedule(name="cosine", iterations=97, final_factor=0.1, anchor=Anchor(30, 0.2))
    theirs = torch_values(lambda o: reference.CosineAnnealingLR(o, T_max=67, eta_min=0.25), 67)
    assert [ours(30 + i) for i in range(67)] == pytest.approx([0.2 * one for one in theirs], rel=1e-9)


def test_an_anchor_below_the_end_of_its_curve_stays() -> None:
    schedule = build_schedule(name="cosine", iterations=9, final_factor=0.5, anchor=Anchor(4, 0.2))
    assert {schedule(i) for i in range(4, 12)} == {0.2}


def test_a_weight_decay_for_no_norm_is_refused():
    with pytest.raises(ConfigError, match="norm_weight_decay = 0.1: has no effect"):
        build_optimizer(nn.Linear(2, 2), lr=1.0, norm_weight_decay=0.1)
    build_optimizer(nn.Linear(2, 2), lr=1.0, norm_weight_decay=0.0)  # the usual one


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        generator = torch.Generator().manual_seed(step)
        model(torch.rand(2, 3, 6, 6, generator=generator, dtype=torch.float64)).square().mean().backward()
        optimizer.step()


PLAIN = {
    "sgd": (torch.optim.SGD, {"momentum": 0.9}),
    "adam": (torch.optim.Adam, {}),
    "adamw": (torch.optim.AdamW, {}),
}


@pytest.mark.parametrize("name", PLAIN)
def test_a_checkpoint_of_an_optimizer_that_is_not_fused_goes_on(name: str, tmp_path) -> None:
    """It had other options, and may have another layout in memory than the weights have now."""
    torch.manual_seed(0)
    theirs = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)).double()
    kind, options = PLAIN[name]
    plain = kind(theirs.parameters(), lr=0.01, weight_decay=1e-4, foreach=False, **options)
    learn(theirs, plain, 3)
    ours = copy.deepcopy(theirs).to(memory_format=torch.channels_last)
    fused = build_optimizer(ours, name=name, lr=0.01)
    state = TrainState(ours, fused)
    content = {"iteration": 3, "model": theirs.state_dict(), "optimizer": copy.deepcopy(plain.state_dict())}
    restore(content, state)
    assert all(group["fused"] and not group["foreach"] for group in fused.param_groups)
    learn(theirs, plain, 3)
    learn(ours, fused, 3)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other)  # to 1e-7 in double precision


@pytest.mark.parametrize("name", PLAIN)
def test_an_overflow_in_the_first_step_leaves_nothing_behind(name: str) -> None:
    """torch's fused SGD kept a momentum of uninitialized memory."""
    weight = nn.Parameter(torch.ones(1000))
    model = nn.Module()
    model.register_parameter("weight", weight)
    optimizer = build_optimizer(model, name=name, lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    for gradient in (float("inf"), 1.0):
        scaler.scale(weight.sum()).backward()
        weight.grad = torch.full_like(weight, gradient)
        moments = optimizer.state[weight].values()
        scaler.step(optimizer)
        assert gradient == 1.0 or not any(moment.any() for moment in moments)
        scaler.update()
    assert bool((weight != 1).all())


def test_a_weight_may_get_its_first_gradient_later() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = build_optimizer(model, lr=0.1)
    model[0](torch.ones(1, 2)).sum().backward()
    optimizer.step()
    before = model[1].weight.detach().clone()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert not torch.equal(model[1].weight, before)
