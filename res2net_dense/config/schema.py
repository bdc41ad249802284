"""The schema of a configuration: one class per section; the docstring under a field is its description.

What the tasks share is here; a task adds its own sections in a file next to this one and joins them in a
subclass of `Config`, which `load.CONFIGS` names.

Only what a file alone can tell is checked here. Names of backbones, files on disk and the abilities of the
machine are checked by the code that uses them.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from res2net_dense.data.pixels import MAX_CHANNELS
from res2net_dense.limits import MAX_CLASSES, MAX_PROCESSES, MAX_SEED, MAX_THREADS
from res2net_dense.network_options import BlockSettings, NetworkSettings
from res2net_dense.sections import (
    BatchSize,
    BelowOne,
    Classes,
    Fraction,
    OnlyWith,
    Pair,
    PathText,
    PixelValue,
    Positive,
    Section,
    Share,
    Steps,
    StepsOrNone,
    Text,
    ValueRange,
    Weight,
)

Means = Annotated[list[PixelValue], Field(min_length=1, max_length=MAX_CHANNELS)]
Names = Annotated[list[Text], Field(min_length=1, max_length=MAX_CLASSES)]
Deviations = Annotated[list[Positive], Field(min_length=1, max_length=MAX_CHANNELS)]


class WeightsConfig(Section):
    """A network and the weights it starts from."""

    name: Text
    """Published name, such as `res2net50_26w_4s`."""
    weights: PathText | None = None
    """Weights to start from: `imagenet` (the first published ones), a tag such as `mm_in1k`, a file, or null
    for random ones."""


# Pydantic lists the fields of the last base first.
class BackboneConfig(BlockSettings, NetworkSettings, WeightsConfig):
    """The network that computes the features."""


class ModelConfig(Section):
    """What is built on the backbone; each task adds its own."""

    arch: str
    """The architecture."""
    weights: PathText | None = None
    """A run folder or weight file of a whole model to start from, also of one with other classes; null for
    none. It takes the place of `backbone.weights`."""
    num_classes: Classes | None = None
    """Number of classes without the background; null counts them in the data set."""
    pixel_mean: Means | None = [123.675, 116.28, 103.53]
    """Mean of the pixels in each channel, 0 to 255; null measures it on the training images, which is the
    default where `data.channels` is not 3."""
    pixel_std: Deviations | None = [58.395, 57.12, 57.375]
    """Standard deviation of the pixels in each channel, 0 to 255; null as for the mean."""


class DataConfig(Section):
    """The images, and how they are prepared; each task adds its own."""

    train: object | None = None
    """The part to learn from; null where nothing is trained."""
    val: object | None = None
    """The part to evaluate on; null for none."""
    class_names: Names | None = None
    """Names of the classes in the order of their labels; null takes them from the data set."""
    channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] = 3
    """Channels of the images; 3 are RGB. The first convolution of weights for RGB is adapted to others."""
    value_range: ValueRange | None = None
    """What becomes 0 and 255 in images of more than 8 bits, such as [0, 4095]; all values between are kept
    as floats. Null finds it out from the images, and says so where they have more than 8 bits."""
    flip: Fraction = 0.5
    """Probability of a horizontal flip in training."""
    photometric: Literal["none", "light", "strong"] = "none"
    """Changes of colour, brightness, sharpness and noise in training; hue and saturation of RGB alone."""
    on_error: Literal["raise", "skip"] = "raise"
    """What happens at an image in training that cannot be read or whose annotations are wrong: the run ends,
    or goes on without it. Evaluation always ends: a score without some images would be another score."""
    workers: Annotated[int, Field(ge=0, le=MAX_PROCESSES)] = 2
    """Processes that load images, for each training process; 0 loads in the training process."""
    timeout: Annotated[int, Field(ge=0, le=7 * 24 * 3600)] = 120
    """Seconds that the images of one batch may take to load. After them the run is saved and ends, with the
    name of the image; 0 sets no limit."""

    @model_validator(mode="after")
    def _check_names(self) -> DataConfig:
        if self.class_names and len(set(self.class_names)) < len(self.class_names):
            raise self.conflict("class_names", "must not repeat a name")
        return self


class OptimizerConfig(Section):
    """How the weights change."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    """The method; adam has its weight decay in the gradient, adamw apart from it."""
    lr: Annotated[float, Field(gt=0, le=1000)]
    """Peak learning rate at `train.reference_batch`; it is scaled linearly to `train.batch_size`."""
    momentum: Annotated[BelowOne, OnlyWith("name", "sgd")] = 0.9
    """Momentum of SGD."""
    betas: Annotated[
        Annotated[tuple[BelowOne, BelowOne], Field(strict=False)], OnlyWith("name", "adam", "adamw")
    ] = (0.9, 0.999)
    """Decay rates of the two averages of Adam and AdamW."""
    weight_decay: Weight = 1e-4
    """Weight decay."""
    norm_weight_decay: Weight | None = 0.0
    """Weight decay of normalization layers; null for the same as everywhere."""
    bias_lr_factor: Weight = 1.0
    """Factor on the learning rate of biases."""
    backbone_lr_factor: Annotated[Weight, OnlyWith("/backbone.freeze_at", 0, 1, 2, 3, 4)] = 1.0
    """Factor on the learning rate of the backbone."""


class ScheduleConfig(Section):
    """How the learning rate changes over the iterations."""

    name: Literal["multistep", "poly", "cosine", "onecycle", "constant"] = "multistep"
    """The curve after the warm-up."""
    warmup_iterations: Annotated[StepsOrNone, OnlyWith("name", "multistep", "poly", "cosine", "constant")] = 0
    """Iterations of linear warm-up; not for onecycle, which has its own."""
    warmup_factor: Annotated[Fraction, OnlyWith("warmup_iterations")] = 0.001
    """Factor on the learning rate at the start of the warm-up."""
    milestones: Annotated[list[Steps], Field(max_length=1000), OnlyWith("name", "multistep")] = []
    """Iterations at which multistep multiplies the learning rate by `gamma`."""
    gamma: Annotated[Share, OnlyWith("milestones")] = 0.1
    """Factor of multistep."""
    power: Annotated[float, Field(gt=0, le=100), OnlyWith("name", "poly")] = 0.9
    """Exponent of poly."""
    final_factor: Annotated[Fraction, OnlyWith("name", "poly", "cosine")] = 0.0
    """Factor on the learning rate at the end of poly and cosine."""
    warmup_fraction: Annotated[float, Field(gt=0, lt=1), OnlyWith("name", "onecycle")] = 0.3
    """Part of the iterations over which onecycle rises."""

    @model_validator(mode="after")
    def _check(self) -> ScheduleConfig:
        if any(left >= right for left, right in pairwise(self.milestones)):
            raise self.conflict("milestones", "must increase")
        return self


class EarlyStopConfig(Section):
    """When a training ends before its last iteration."""

    metric: Text | None = None
    """The metric that has to improve, such as `val_loss`; null for the one that chooses the best model."""
    patience: Steps
    """Evaluations in a row that may pass without an improvement; the last of them ends the training."""
    min_delta: Weight = 0.0
    """An improvement is better than the best value so far by more than this, in units of the metric."""


class TrainConfig(Section):
    """The training loop."""

    iterations: Steps | None = None
    """Optimizer steps; null computes them from `epochs`."""
    epochs: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Passes over the training images, in place of `iterations`, which becomes the smallest number of batches
    that has them all."""
    batch_size: BatchSize
    """Images of one optimizer step, over all processes and accumulated parts."""
    reference_batch: BatchSize = 16
    """The batch size for which `optimizer.lr` is stated."""
    accumulate: BatchSize = 1
    """Parts into which a batch is cut to fit into memory; their gradients add up."""
    optimizer: OptimizerConfig
    """How the weights change."""
    schedule: ScheduleConfig = ScheduleConfig()
    """How the learning rate changes."""
    clip_grad_norm: Positive | None = None
    """Longest allowed gradient (2-norm over all weights); null for no limit."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of the moving average of the weights that is evaluated and saved; null for none."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    """Number format of the forward pass, in training and evaluation; fp16 needs CUDA. auto is bf16 where the
    device is fast in it, else fp32."""
    channels_last: bool = False
    """Keep the channels of a pixel together in memory; often faster with mixed precision."""
    compile: bool = False
    """Compile the backbone, and a detector's feature pyramid, with torch.compile. It takes minutes, and again
    for images of another size."""
    fused_block: Annotated[
        bool,
        OnlyWith("channels_last", True),
        OnlyWith("compile", False),
        OnlyWith("/backbone.norm", "BN", "FrozenBN"),
        OnlyWith("/backbone.checkpoint_activations", False),
        OnlyWith("/runtime.deterministic", False),
    ] = False
    """Run the splits of Res2Net blocks by own GPU programs where they are faster, which is measured; needs an
    NVIDIA GPU and Triton. Two runs can choose differently, so they are equal up to rounding only."""
    on_non_finite: Literal["raise", "skip"] = "raise"
    """At a NaN or infinite loss or gradient: end the run, or skip the step (at most three in a row)."""
    log_every: Steps = 20
    """Iterations between two lines of the log."""
    eval_every: Annotated[StepsOrNone, OnlyWith("/data.val")] = 0
    """Iterations between two evaluations; 0 evaluates at the end only."""
    save_every: Steps = 5000
    """Iterations between two checkpoints; the last one is always saved."""
    keep_checkpoints: Steps = 2
    """How many of the latest checkpoints are kept."""
    best_metric: Annotated[Text | None, OnlyWith("/data.val")] = None
    """The metric that chooses the best model, such as `segm/AP`, or `val_loss`; null for the task's own."""
    early_stop: Annotated[EarlyStopConfig | None, OnlyWith("/data.val")] = None
    """When to end before the last iteration; null for never. Needs `eval_every`."""

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if self.iterations is None and self.epochs is None:
            raise self.conflict("iterations", "set it, or train.epochs")
        if self.iterations is not None and self.epochs is not None:
            raise self.conflict("epochs", f"leave it out, or train.iterations = {self.iterations}")
        if self.early_stop and not self.eval_every:
            raise self.conflict("eval_every", "train.early_stop needs evaluations on the way: set it above 0")
        if self.batch_size % self.accumulate:
            raise self.conflict("accumulate", f"must divide batch_size = {self.batch_size}")
        milestones, iterations = self.schedule.milestones, self.iterations
        steps = self.schedule.name == "multistep"  # others leave the milestones of a base out
        if steps and milestones and iterations and milestones[-1] >= iterations:
            raise self.conflict("schedule.milestones", f"must be below train.iterations = {iterations}")
        return self


class EvalConfig(Section):
    """The evaluation."""

    batch_size: BatchSize = 1
    """Images at a time, in each process."""
    loss: Annotated[bool, OnlyWith("/data.val")] = False
    """Compute the losses on `data.val` too, the metrics `val_loss` and `val_loss/NAME`: as in training, but
    without augmentation and with norms as in evaluation. Reads the images once more."""
    expected: dict[str, Pair] = {}
    """Metrics the model must reach, each with its tolerance: `segm/AP: [35.6, 0.2]`."""


def _check_device(value: object) -> object:
    """One message for all that is not the name of a device; which devices there are is found out later."""
    if not isinstance(value, str) or not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:[0-9]{1,3})?", value):
        raise PydanticCustomError("device", "should be auto, cpu, cuda, cuda:N, xpu, xpu:N or mps")
    return value


class RuntimeConfig(Section):
    """Where and how the run happens."""

    device: Annotated[str, BeforeValidator(_check_device)] = "auto"
    """`auto` (the accelerator that PyTorch finds: CUDA, XPU or MPS; else the CPU), `cpu`, `cuda`, `cuda:N`,
    `xpu`, `xpu:N` or `mps`."""
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0
    """Start of all random numbers."""
    output_dir: PathText = "output/run"
    """The run folder, relative to the current working directory."""
    threads: Annotated[int, Field(gt=0, le=MAX_THREADS)] | None = None
    """CPU threads of a process; null leaves the choice to PyTorch."""
    deterministic: bool = False
    """Use only reproducible algorithms; slower."""


class Config(Section):
    """A whole configuration; the class of a task narrows `task`, `model`, `data` and `eval`."""

    task: str
    """What is learned."""
    backbone: BackboneConfig
    """The network that computes the features."""
    model: ModelConfig
    """What is built on the backbone."""
    data: DataConfig = DataConfig()
    """The images, and how they are prepared."""
    train: TrainConfig
    """The training loop."""
    eval: EvalConfig = EvalConfig()
    """The evaluation."""
    runtime: RuntimeConfig = RuntimeConfig()
    """Where and how the run happens."""

    @model_validator(mode="after")
    def _check_channels(self) -> Config:
        channels = self.data.channels
        unknown: dict[str, None] = {}
        for key in ("pixel_mean", "pixel_std"):
            value = getattr(self.model, key)
            if value is None or len(value) == channels:
                continue
            if key in self.model.model_fields_set:
                reason = f"must have one number for each of data.channels = {channels}, or be null"
                raise self.conflict(f"model.{key}", reason)
            unknown[key] = None  # the default is that of RGB
        if unknown:
            vars(self)["model"] = self.model.model_copy(update=unknown)  # it is frozen
        return self

    @model_validator(mode="after")
    def _check_classes(self) -> Config:
        names, count = self.data.class_names, self.model.num_classes
        if names is not None and count is not None and len(names) != count:
            reason = f"must equal the number of data.class_names, {len(names)}"
            raise self.conflict("model.num_classes", reason)
        return self
