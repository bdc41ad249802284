"""The schema of a configuration: one class a section, and the docstring under a field is its description.

Only what a file alone can tell is checked here. Names of backbones, files on disk and the abilities of the
machine are checked by the code that uses them.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)
from pydantic_core import PydanticCustomError

Fraction = Annotated[float, Field(ge=0, le=1)]
Text = Annotated[str, Field(min_length=1)]
# YAML knows no tuples, and strict mode would refuse a list for one.
Pair = Annotated[tuple[float, float], Field(strict=False)]
Betas = Annotated[
    tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]], Field(strict=False)
]
Channels = Annotated[list[float], Field(min_length=3, max_length=3)]


def _conflict(key: str, value: object, reason: str) -> PydanticCustomError:
    """Build the error of a field that does not fit another one; `key` is its path inside the section."""
    return PydanticCustomError("conflict", "{reason}", {"key": key, "value": value, "reason": reason})


class Section(BaseModel):
    """Base of all sections: unknown keys, implicit conversions and later changes are refused."""

    # Strict, because lax mode takes `true` for 1, "4" for 4 and 4.0 for 4 without a word.
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class BackboneConfig(Section):
    """The Res2Net that computes the features."""

    name: Text
    """Published name, such as `res2net50_26w_4s`."""
    weights: Text | None = None
    """Weights to start from: `imagenet` (the published ones), the path of a file, or null (random)."""
    freeze_at: Annotated[int, Field(ge=0, le=5)] = 0
    """Leading parts that keep their weights: 0 none, 1 the stem, 2 the stem and res2, ... 5 everything."""
    norm: Literal["BN", "FrozenBN", "SyncBN", "GN"] = "BN"
    """Normalization layers; FrozenBN keeps the statistics and scales of the weights it starts from."""
    drop_path_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability that training drops the last block's residual branch; earlier blocks get linearly less."""
    checkpoint_activations: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    stage_pool: Literal["always", "strided"] = "always"
    """Average-pool the last channel group in the first block of each stage, or only where it has a stride."""
    stride_in_1x1: bool = False
    """Put the stride of a stage into its first 1x1 convolution instead of the 3x3 ones."""


class RCNNConfig(Section):
    """What Faster and Mask R-CNN share."""

    num_classes: PositiveInt | None = None
    """Number of classes without the background; null counts them in the annotation file."""
    fpn_channels: PositiveInt = 256
    """Channels of each level of the feature pyramid."""
    norm: Literal["", "BN", "GN", "SyncBN"] = ""
    """Normalization in the pyramid and the heads; empty for none."""
    anchor_sizes: Annotated[list[PositiveFloat], Field(min_length=5, max_length=5)] = [32, 64, 128, 256, 512]
    """Anchor sizes in pixels, one for each of p2, p3, p4, p5, p6."""
    anchor_ratios: Annotated[list[PositiveFloat], Field(min_length=1)] = [0.5, 1.0, 2.0]
    """Height to width ratios of the anchors."""
    box_head_dim: PositiveInt = 1024
    """Width of the fully connected layers of the box head."""
    box_head_convs: NonNegativeInt = 0
    """3x3 convolutions of the box head before its fully connected layers."""
    rpn_batch: PositiveInt = 256
    """Anchors sampled an image for the proposal losses."""
    roi_batch: PositiveInt = 512
    """Proposals sampled an image for the losses of the heads."""
    rpn_pre_nms_train: PositiveInt = 2000
    """Best proposals of a level that enter non-maximum suppression in training."""
    rpn_post_nms_train: PositiveInt = 1000
    """Best proposals of an image that are kept after it in training."""
    rpn_pre_nms_test: PositiveInt = 1000
    """Best proposals of a level that enter non-maximum suppression in evaluation."""
    rpn_post_nms_test: PositiveInt = 1000
    """Best proposals of an image that are kept after it in evaluation."""
    score_threshold: Fraction = 0.05
    """Detections below this score are dropped."""
    nms_threshold: Fraction = 0.5
    """Of two detections of a class that overlap more than this IoU the weaker is dropped."""
    detections_per_image: PositiveInt = 100
    """The most detections kept of one image."""
    pixel_mean: Channels = [123.675, 116.28, 103.53]
    """Mean of the pixels, RGB, 0 to 255."""
    pixel_std: Annotated[list[PositiveFloat], Field(min_length=3, max_length=3)] = [58.395, 57.12, 57.375]
    """Standard deviation of the pixels, RGB, 0 to 255."""
    detectron2: dict[str, Any] = {}
    """detectron2's own keys, passed through, such as `MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA: 0.5`."""


class FasterRCNNConfig(RCNNConfig):
    """Faster R-CNN with a feature pyramid: boxes."""

    arch: Literal["faster_rcnn"]
    """The architecture."""


class MaskRCNNConfig(RCNNConfig):
    """Mask R-CNN with a feature pyramid: boxes and masks."""

    arch: Literal["mask_rcnn"]
    """The architecture."""
    mask_head_convs: NonNegativeInt = 4
    """3x3 convolutions of the mask head."""
    mask_head_dim: PositiveInt = 256
    """Channels of the mask head."""


class SplitConfig(Section):
    """One part of a data set. Relative paths are relative to the current working directory."""

    images: Text
    """Folder of the images."""
    annotations: Text
    """Annotation file in COCO's format."""


class DataConfig(Section):
    """The images, and how they are prepared."""

    train: SplitConfig | None = None
    """The part to learn from; null where nothing is trained."""
    val: SplitConfig | None = None
    """The part to evaluate on; null for none."""
    class_names: Annotated[list[Text], Field(min_length=1)] | None = None
    """Names of the classes in the order of their labels; null takes them from the annotation file."""
    min_size_train: Annotated[list[PositiveInt], Field(min_length=1)] = [800]
    """Lengths of the shorter edge in training; one is drawn for each image."""
    max_size_train: PositiveInt = 1333
    """The longer edge never exceeds this in training."""
    min_size_test: PositiveInt = 800
    """Length of the shorter edge in evaluation."""
    max_size_test: PositiveInt = 1333
    """The longer edge never exceeds this in evaluation."""
    flip: Fraction = 0.5
    """Probability of a horizontal flip in training."""
    photometric: Literal["none", "light", "strong"] = "none"
    """Changes of colour, brightness, sharpness and noise in training."""
    aspect_ratio_grouping: bool = True
    """Batch wide images with wide ones and tall with tall: less padding."""
    keep_empty: bool = False
    """Train on images without objects too; they teach what is not an object."""
    on_error: Literal["raise", "skip"] = "raise"
    """What happens at an unreadable image."""
    workers: NonNegativeInt = 2
    """Processes that load images, for each training process; 0 loads in the training process."""

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        if max(self.min_size_train) > self.max_size_train:
            raise _conflict(
                "min_size_train",
                self.min_size_train,
                f"must not exceed max_size_train = {self.max_size_train}",
            )
        if self.min_size_test > self.max_size_test:
            raise _conflict(
                "min_size_test", self.min_size_test, f"must not exceed max_size_test = {self.max_size_test}"
            )
        if self.class_names and len(set(self.class_names)) < len(self.class_names):
            raise _conflict("class_names", self.class_names, "must not repeat a name")
        return self


class OptimizerConfig(Section):
    """How the weights change."""

    name: Literal["sgd", "adamw"] = "sgd"
    """The method."""
    lr: PositiveFloat
    """Peak learning rate at `train.reference_batch`; it is scaled linearly to `train.batch_size`."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD."""
    betas: Betas = (0.9, 0.999)
    """Decay rates of AdamW's two averages."""
    weight_decay: NonNegativeFloat = 1e-4
    """Weight decay."""
    norm_weight_decay: NonNegativeFloat | None = 0.0
    """Weight decay of normalization layers; null for the same as everywhere."""
    bias_lr_factor: NonNegativeFloat = 1.0
    """Factor on the learning rate of biases."""
    backbone_lr_factor: NonNegativeFloat = 1.0
    """Factor on the learning rate of the backbone."""


class ScheduleConfig(Section):
    """How the learning rate changes over the iterations."""

    name: Literal["multistep", "poly", "cosine", "onecycle", "constant"] = "multistep"
    """The curve after the warm-up."""
    warmup_iterations: NonNegativeInt = 0
    """Iterations of linear warm-up; not for onecycle, which has its own."""
    warmup_factor: Fraction = 0.001
    """Factor on the learning rate at the start of the warm-up."""
    milestones: list[PositiveInt] = []
    """Iterations at which multistep multiplies the learning rate by `gamma`."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Factor of multistep."""
    power: PositiveFloat = 0.9
    """Exponent of poly."""
    final_factor: Fraction = 0.0
    """Factor on the learning rate at the end of poly and cosine."""
    warmup_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Part of the iterations over which onecycle rises."""

    @model_validator(mode="after")
    def _check(self) -> ScheduleConfig:
        if any(left >= right for left, right in pairwise(self.milestones)):
            raise _conflict("milestones", self.milestones, "must increase")
        return self


class TrainConfig(Section):
    """The training loop."""

    iterations: PositiveInt
    """Optimizer steps."""
    batch_size: PositiveInt
    """Images of one optimizer step, over all processes and accumulated parts."""
    reference_batch: PositiveInt = 16
    """The batch size for which `optimizer.lr` is stated."""
    accumulate: PositiveInt = 1
    """Parts into which a batch is cut to fit into memory; their gradients add up."""
    optimizer: OptimizerConfig
    """How the weights change."""
    schedule: ScheduleConfig = ScheduleConfig()
    """How the learning rate changes."""
    clip_grad_norm: PositiveFloat | None = None
    """Longest allowed gradient (2-norm over all weights); null for no limit."""
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of the moving average of the weights that is evaluated and saved; null for none."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Number format of the forward pass, in training and evaluation; fp16 needs CUDA."""
    channels_last: bool = False
    """Keep the channels of a pixel together in memory; often faster with mixed precision."""
    compile: bool = False
    """Compile the backbone with torch.compile."""
    on_non_finite: Literal["raise", "skip"] = "raise"
    """What happens at a NaN or infinite loss or gradient: end the run, or leave that step out (at most three
    in a row). Neither touches the weights."""
    log_every: PositiveInt = 20
    """Iterations between two lines of the log."""
    eval_every: NonNegativeInt = 0
    """Iterations between two evaluations; 0 evaluates at the end only."""
    save_every: PositiveInt = 5000
    """Iterations between two checkpoints; the last one is always saved."""
    keep_checkpoints: PositiveInt = 2
    """How many of the latest checkpoints are kept."""
    best_metric: Text | None = None
    """The metric that chooses the best model, such as `segm/AP`; null for the task's own."""

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if self.batch_size % self.accumulate:
            raise _conflict("accumulate", self.accumulate, f"must divide batch_size = {self.batch_size}")
        if self.schedule.milestones and self.schedule.milestones[-1] >= self.iterations:
            raise _conflict(
                "schedule.milestones",
                self.schedule.milestones,
                f"must be below train.iterations = {self.iterations}",
            )
        return self


class EvalConfig(Section):
    """The evaluation."""

    batch_size: PositiveInt = 1
    """Images at a time, in each process."""
    backend: Literal["auto", "pycocotools", "faster_coco_eval"] = "auto"
    """The library that scores; auto takes the faster one where it is installed."""
    expected: dict[str, Pair] = {}
    """Metrics the model must reach, each with its tolerance: `segm/AP: [35.6, 0.2]`."""


class RuntimeConfig(Section):
    """Where and how the run happens."""

    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda|cuda:[0-9]+)$")] = "auto"
    """`auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:N`."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Start of all random numbers."""
    output_dir: Text = "output/run"
    """The run folder, relative to the current working directory."""
    threads: PositiveInt | None = None
    """CPU threads of a process; null leaves the choice to PyTorch."""
    deterministic: bool = False
    """Use only reproducible algorithms; slower."""


class Config(Section):
    """A whole configuration."""

    task: Literal["detection"]
    """What is learned."""
    backbone: BackboneConfig
    """The Res2Net that computes the features."""
    model: Annotated[MaskRCNNConfig | FasterRCNNConfig, Field(discriminator="arch")]
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
    def _check(self) -> Config:
        names, count = self.data.class_names, self.model.num_classes
        if names is not None and count is not None and len(names) != count:
            raise _conflict(
                "model.num_classes",
                self.model.num_classes,
                f"must equal the number of data.class_names, {len(names)}",
            )
        return self
