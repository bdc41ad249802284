"""A trained model that takes photos: from a run folder, a weight file or an exported file.

predictor = Predictor.load("output/run")
prediction = predictor("street.jpg")
predictor.draw("street.jpg", prediction).save("overlay.png")
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from res2net_dense.config import Config
from res2net_dense.data.images import read_sample, sample_of, to_pixels
from res2net_dense.data.pixels import PixelFormat, to_display
from res2net_dense.data.regions import Pixels, WholeImage, open_pixels, shrink_factor
from res2net_dense.data.tiles import tile_of
from res2net_dense.deploy.exported import ExportedModel
from res2net_dense.deploy.rewrite import optimize_for_inference
from res2net_dense.engine.inference import predict
from res2net_dense.errors import ConfigError, ExportError, Res2NetDenseError
from res2net_dense.trained import ConfigLike, Job, open_job
from res2net_dense.types import Prediction, Sample

Photo = str | Path | Image.Image | np.ndarray | Tensor
"""A path, a PIL image, (H, W, 3) uint8 RGB as an array, or (3, H, W) uint8 RGB as a tensor. Where the images
of the run have other channels or more than 8 bits, arrays have these: values as they are in the files."""


class Predictor:
    """Predicts on images of any sizes, with exactly the preprocessing of the run; made by `load`.

    Attributes:
        config: of the run.
        class_names: by label.
        model: the network, or the exported file.
        device: where it runs; an exported file runs on the CPU.
        form: what images are read as.
    """

    def __init__(self, job: Job, device: torch.device) -> None:
        config = job.with_classes()
        if config.model.num_classes is None or config.model.pixel_mean is None:
            config = job.prepared(inspect=False)
        self.config: Config = config
        self.class_names: list[str] = job.task.class_names(config)
        self.device = device
        self.model: nn.Module = job.model(config).to(device).eval()
        self.task = job.task
        self.form = PixelFormat(config.data.channels, config.data.value_range)
        self._transform = job.task.eval_transform(config)
        self._precision: str = config.train.precision

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        config: ConfigLike | None = None,
        overrides: Sequence[str] = (),
        device: str | torch.device | None = None,
    ) -> Predictor:
        """Load a model with its preprocessing.

        Args:
            path: a run folder (its best model), a `.safetensors` or `.pt` file of ours, or an exported file;
                `~` is the home folder.
            config: None for the one in `path`.
            overrides: changes to it, such as `model.score_threshold=0.3`.
            device: such as `cpu` or `cuda:1`; None for `runtime.device` of the config.

        Raises:
            Res2NetDenseError: the path holds no model, or none that fits the config.
        """
        return cls(*open_job(config, Path(path).expanduser(), overrides, device=device))

    @overload  # a path is a sequence of paths for the type checker
    def __call__(self, images: Photo) -> Prediction: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(self, images: Sequence[Photo]) -> list[Prediction]: ...

    def __call__(self, images: Photo | Sequence[Photo]) -> Prediction | list[Prediction]:
        """Predict.

        Args:
            images: one image or several, see `Photo`; an array or tensor of four dimensions is several. EXIF
                orientation is applied.

        Returns:
            A prediction for one image, a list for several; on the CPU, in the frame of the image as it was
            given.

        Raises:
            DatasetError: an image cannot be read or is not an image.
            ExportError: an exported file does not take this size.
        """
        if isinstance(images, (np.ndarray, Tensor)) and images.ndim == 4:
            images = list(images)
        if isinstance(images, (str, Path, Image.Image, np.ndarray, Tensor)) or not isinstance(
            images, Iterable
        ):
            return self([images])[0]  # of what is not an image the error is that of a list with it
        samples = (
            self._transform(sample)
            for number, image in enumerate(images)
            for sample in self._samples(image, number)
        )
        batches = iter(lambda: list(islice(samples, self.config.eval.batch_size)), [])
        return [prediction for _, prediction in self._predict(batches)]

    def stream(
        self,
        files: Sequence[Path],
        on_error: Callable[[int, Res2NetDenseError], None],
        *,
        done: Collection[int] = (),
    ) -> Iterator[tuple[int, Sample, Prediction]]:
        """Predict on many files, which `data.workers` processes read.

        Args:
            files: the images.
            on_error: called with the index of a file that cannot be read or does not fit, and the reason.
            done: indices of files that are left out. The others get the predictions that they get with them:
                they are in the batches that they would be in.

        Yields:
            The index of a file, its sample with the original size, and its prediction.
        """

        failed: set[int] = set()

        def fail(number: int, error: Res2NetDenseError) -> None:
            if number not in failed and number not in done:  # each tile of an image may fail
                failed.add(number)
                on_error(number, error)

        def fits(sample: Sample) -> bool:
            number, (height, width) = int(sample["image_id"]), sample["image"].shape[-2:]
            try:
                if isinstance(self.model, ExportedModel):
                    self.model.check_size((height, width))
            except ExportError as error:
                fail(number, ExportError(f"{files[number]}: {error}"))
            return number not in failed

        def batches() -> Iterator[list[Sample]]:
            for samples, errors in self.task.build_predict_loader(self.config, files, done=done):
                for number, error in errors:
                    fail(number, error)
                if fitting := list(filter(fits, samples)):
                    yield fitting

        for sample, prediction in self._predict(batches()):
            if int(sample["image_id"]) not in done:
                yield int(sample["image_id"]), sample, prediction

    def draw(self, image: Photo, prediction: Prediction, *, score: float = 0.5) -> Image.Image:
        """Draw a prediction on its image, without detections whose score is below `score`."""
        return self.draw_all(image, prediction, score=score)[self.task.folders.index(self.task.overlay)]

    def draw_all(self, image: Photo, prediction: Prediction, *, score: float = 0.5) -> list[Image.Image]:
        """Return all images that the task makes of a prediction, one for each of `task.folders`; other images
        than RGB of 8 bits are shown as `data.pixels.to_display` says.

        Those that show an image of more than `regions.MAX_DRAWN_PIXELS` are smaller; maps have its size.
        """
        pixels = self._open(image)
        if shrink_factor(pixels.size) > 1:
            return self.task.draw_large(pixels, prediction, self.class_names, score)
        shown = to_display(pixels.read(0, 0, *pixels.size))
        return self.task.draw(shown, prediction, self.class_names, score)

    def optimize(self, dtype: torch.dtype | None = None, *, backend: str = "torch") -> Predictor:
        """Make the network faster, see `optimize_for_inference`, and return the predictor.

        Args:
            dtype: of weights and feature maps, such as `torch.bfloat16`; None leaves them.
            backend: "torch", "onnxruntime", "openvino", or "auto" for the fastest on this machine.

        Raises:
            ConfigError: the model is an exported file, or an argument has no meaning.
            ExportError: the backend cannot run the network, or its results differ.
            MissingDependencyError: the backend is not installed.
        """
        if isinstance(self.model, ExportedModel):
            raise ConfigError(f"{self.model.path} is an exported file: optimize the run that it was made of")
        self.model = optimize_for_inference(self.model, dtype=dtype, backend=backend)
        if dtype is not None:
            self._precision = "fp32"  # the network casts by itself
        return self

    def _samples(self, image: Photo, number: int) -> Iterator[Sample]:
        """The tiles of an image, or the image."""
        file = Path(image).expanduser() if isinstance(image, (str, Path)) else None
        name, tiles = str(file or f"image {number}"), self.task.tile_size(self.config)
        pixels = self._open(image) if tiles or file is None else None
        grid = tiles.grid(*pixels.size) if tiles and pixels else []
        if len(grid) > 1 and pixels:
            yield from (tile_of(pixels, tile, name, number) for tile in grid)
        elif isinstance(pixels, WholeImage):
            yield sample_of(pixels.pixels, name, number)
        else:
            yield read_sample(name, number, form=self.form)

    def _open(self, image: Photo) -> Pixels:
        if isinstance(image, (str, Path)):
            return open_pixels(image, self.form)
        return WholeImage(to_pixels(image, self.form))

    def _predict(self, batches: Iterator[list[Sample]]) -> Iterator[tuple[Sample, Prediction]]:
        outcomes = predict(
            self.model,
            batches,
            device=self.device,
            precision=self._precision,
            channels_last=self.config.train.channels_last,
            merger=partial(self.task.merger, self.config),
        )
        for samples, predictions in outcomes:
            yield from zip(samples, predictions, strict=True)
