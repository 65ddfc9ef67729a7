"""Benchmarks: predictions on clean images, or under an attack, a corruption or nullspace noise."""

import logging
import zlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import torch
from pydantic import BeforeValidator
from torch import Tensor
from torch.utils.data import DataLoader

from nsaug.attacks.checks import attack_warnings
from nsaug.corruptions import Corruption
from nsaug.data import TestDataset
from nsaug.data.datamodule import as_test_dataset
from nsaug.data.dataset import PAD_LABEL
from nsaug.data.testsets.imagenet_variants import class_subset_indices
from nsaug.data.testsets.stored_corruptions import StoredCorruption
from nsaug.evaluation.cache import PerImageResult
from nsaug.evaluation.metrics import FIELDS, PerImageScores, score_predictions
from nsaug.models.noisy_vit import NoisyViT
from nsaug.nullspace import NullspaceNoise, embedding_rms, synthesize
from nsaug.nullspace.pixel_space import to_pixels
from nsaug.utils.errors import UserError
from nsaug.utils.rng import make_generator
from nsaug.utils.types import FiniteFloat, NonNegativeInt, to_plain, validated_dataclass

log = logging.getLogger(__name__)

NUM_SAMPLES = 6
"""Number of sample images kept for the report."""
CONDITIONS = ("clean", "relabelled", "shifted", "attacked", "corrupted", "noised")
"""Values of `Benchmark.condition`."""
NUM_RMS_IMAGES = 64
"""Number of images on which rms(u) is measured, whatever the batch size."""
NUM_CHECK_IMAGES = 16
"""Number of images on which a model is checked for masked gradients."""


class BatchFn(Protocol):
    """A function of a batch that returns one or more tensors (B, ...)."""

    def __call__(self, images: Tensor, labels: Tensor, ids: Sequence[str]) -> tuple[Tensor, ...]: ...


@validated_dataclass
class Benchmark:
    """Clean images, or images at several strengths of an attack, a corruption or nullspace noise.

    Attributes:
        attack: an attack of `nsaug.attacks`.
        corruption: a corruption of `nsaug.corruptions`.
        noise: synthesis of ε-approximate nullspace noise, per image and on the evaluated model.
        param: the parameter of the attack, corruption or noise that sets its strength.
        strengths: values of that parameter.
        transfer: make the attack's images on the other models (black-box) instead of the evaluated one.
        data: test data other than the model's own, with the same classes; stored corruptions have severities of their
            own.
        classes: class indices, or the name of a list, to restrict images and predictions to; None takes those of the
            data.
    """

    attack: Any = None
    corruption: Any = None
    noise: NullspaceNoise | None = None
    param: str | None = None
    strengths: tuple[FiniteFloat, ...] = ()
    transfer: bool = False
    data: Annotated[Any, BeforeValidator(as_test_dataset)] = None
    classes: Literal["imagenet_a", "imagenet_r"] | tuple[NonNegativeInt, ...] | None = None

    def __post_init__(self) -> None:
        changes = [change for change in (self.attack, self.corruption, self.noise) if change is not None]
        if len(changes) > 1:
            raise ValueError("a benchmark takes only one of attack, corruption and noise")
        if bool(changes) != bool(self.param) or bool(changes) != bool(self.strengths):
            raise ValueError("an attack, a corruption or noise needs both param and strengths; nothing else takes them")
        if self.data is not None and not isinstance(self.data, TestDataset):
            raise ValueError("data must be one of nsaug.data")
        if self.transfer and self.attack is None:
            raise ValueError("transfer=true needs an attack")
        if changes and self._is_stored:
            raise ValueError("stored corruptions take no attack, corruption or noise")
        if self.noise is not None and self.noise.scope != "per_image":
            raise ValueError("benchmarks use one noise per image: set scope to per_image")
        for strength in self.strengths:  # validates every strength before any image is read
            self._with_strength(strength)

    @property
    def condition(self) -> str:
        """What is done to the images, one of CONDITIONS."""
        if self.attack is not None:
            return "attacked"
        if self.corruption is not None:
            return "corrupted"
        if self.noise is not None:
            return "noised"
        return "clean" if self.data is None else str(self.data.condition)

    @property
    def uses_model_data(self) -> bool:
        """Whether it evaluates on all test images of the model's own data."""
        return self.data is None and self.classes is None

    @property
    def corruption_name(self) -> str | None:
        """Name of the common corruption, generated or stored; None for other benchmarks."""
        if isinstance(self.corruption, Corruption):
            return str(self.corruption.name)
        return str(self.data.corruption) if self._is_stored else None

    @property
    def evaluated_strengths(self) -> tuple[float | None, ...]:
        """Strengths or stored severities; (None,) if there are none."""
        return tuple(self.data.severities) if self._is_stored else self.strengths or (None,)

    @property
    def settings(self) -> dict[str, Any]:
        """All settings that results depend on, defaults included, as plain values."""
        return to_plain(replace(self, data=None)) | {"data": self.data and self.data.cache_fields}

    def class_subset(self, model_data: TestDataset) -> list[int] | None:
        """Class indices to restrict images and predictions to; None for all."""
        if self.classes is not None:
            return class_subset_indices(self.classes) if isinstance(self.classes, str) else sorted(self.classes)
        class_subset = (self.data or model_data).class_subset
        return None if class_subset is None else list(class_subset)

    @property
    def _is_stored(self) -> bool:
        return isinstance(self.data, StoredCorruption)

    def num_forwards(self, num_images: int) -> int:
        """Approximate number of forward passes, for the progress bar."""
        per_strength = 1
        if self.attack is not None:
            per_strength += 3 * getattr(self.attack, "num_steps", 1) * getattr(self.attack, "restarts", 1)
        elif self.noise is not None:
            per_strength += 1 + 3 * self.noise.num_steps
        return num_images * per_strength * len(self.evaluated_strengths)

    def run(
        self,
        vit: NoisyViT,
        loader: DataLoader[Any],
        seed: int,
        on_progress: Callable[[int], None],
        source: NoisyViT | None = None,
        class_subset: Sequence[int] | None = None,
    ) -> PerImageResult:
        """Evaluate every image at every strength, in fp32 and eval mode.

        Args:
            vit: the model, on its device.
            loader: yields (images (B, 3, H, W) in [0, 1], labels (B,) or sets of labels (B, k), ids), or None for a
                batch that could not be read.
            seed: seed of random starts and corruptions. The draws for an image depend on the seed, the image's id and
                the index of the strength only, not on batch size or order.
            on_progress: called after every batch with the number of forward passes done.
            source: the model to attack, if it is another one; on the same device.
            class_subset: class indices to restrict predictions to, from `self.class_subset`; None for all.
        """
        vit.eval()
        target = vit if source is None else source.eval()
        with (
            vit.restrict_classes(class_subset),
            nullcontext() if target is vit else target.restrict_classes(class_subset),
        ):
            result = self._run(vit, target, loader, seed, on_progress, _class_index_map(vit, class_subset))
        if class_subset is None:
            return result
        indices = np.array(class_subset)
        scores = [
            replace(scores, label=indices[scores.label], prediction=indices[scores.prediction])
            for scores in result.scores
        ]
        return replace(result, scores=scores)

    def _run(
        self,
        vit: NoisyViT,
        target: NoisyViT,
        loader: DataLoader[Any],
        seed: int,
        on_progress: Callable[[int], None],
        class_map: Tensor | None,
    ) -> PerImageResult:
        """As `run`, with labels and predictions as indices into the class subset."""
        device = vit.mean.device
        rms = self._measure_rms(vit, loader, device)
        strengths = self.evaluated_strengths
        fields: list[dict[str, list[np.ndarray]]] = [{name: [] for name in FIELDS} for _ in strengths]
        samples: list[list[Tensor]] = [[] for _ in strengths]
        num_images = len(loader.dataset)  # type: ignore[arg-type]
        sample_indices = sorted({round(index) for index in np.linspace(0, num_images - 1, NUM_SAMPLES)})
        all_ids: list[str] = []
        for batch in loader:
            if batch is None:
                continue
            images, labels, ids = batch
            images, labels = images.to(device), labels.to(device)
            if class_map is not None:
                labels = class_map[labels]
            if self.attack is not None and not all_ids:
                for warning in attack_warnings(target, images[:NUM_CHECK_IMAGES], labels[:NUM_CHECK_IMAGES]):
                    log.warning("%s may overestimate this model's robustness: %s", type(self.attack).__name__, warning)
            batch_samples = [i - len(all_ids) for i in sample_indices if 0 <= i - len(all_ids) < len(ids)]
            for index in range(len(strengths)):

                def evaluate_batch(
                    images: Tensor,
                    labels: Tensor,
                    ids: Sequence[str],
                    index: int = index,
                    show: bool = bool(batch_samples),
                ) -> tuple[Tensor, ...]:
                    return self._logits(vit, target, images, labels, ids, index, seed, rms, show)

                logits, inputs, converged = split_on_oom(evaluate_batch, images, labels, ids)
                for name, values in score_predictions(logits, labels, converged).items():
                    fields[index][name].append(values.cpu().numpy())
                samples[index] += [inputs[i].cpu() for i in batch_samples]
            all_ids += ids
            on_progress(self.num_forwards(len(images)))
        if not all_ids:
            raise UserError(f"none of the {num_images:,} images can be read")
        scores = [PerImageScores(**{name: np.concatenate(parts) for name, parts in field.items()}) for field in fields]
        sample_indices = [i for i in sample_indices if i < len(all_ids)]
        stacked = torch.stack([torch.stack(images) for images in samples])
        sample_images = (stacked.clamp(0, 1) * 255).round().byte().permute(0, 1, 3, 4, 2).numpy()
        return PerImageResult(strengths, all_ids, scores, sample_indices, sample_images)

    @torch.no_grad()
    def _logits(
        self,
        vit: NoisyViT,
        target: NoisyViT,
        images: Tensor,
        labels: Tensor,
        ids: Sequence[str],
        index: int,
        seed: int,
        rms: Tensor | None,
        show: bool,
    ) -> tuple[Tensor, ...]:
        """Logits at one strength, the images as the model saw them, and whether noise converged (NaN without noise).

        Args:
            index: index of the strength.
            show: convert noise to pixels for the returned images, which is expensive.
        """
        if self._is_stored:
            images = images[:, index]
        if self.attack is None and self.corruption is None and self.noise is None:
            return vit(images), images, _nan_column(images)
        change = self._with_strength(self.strengths[index])
        key: tuple[int, ...] = (seed, index)
        if isinstance(change, Corruption):  # independent of the suite: the same draws for other lists of severities
            key = (seed, zlib.crc32(change.name.encode()), change.severity)
        generators = [make_generator("cpu", *key, zlib.crc32(image_id.encode())) for image_id in ids]
        if self.noise is not None:
            result = synthesize(vit, images, change, generator=generators, rms=rms)
            pixels = to_pixels(vit, result.noise) if show else None
            inputs = images if pixels is None else images + pixels
            return vit(images, result.noise, change.layer), inputs, result.converged.float()
        if self.attack is not None:
            inputs = change(target, images, labels, generators)
            if not 0 <= float(inputs.min()) <= float(inputs.max()) <= 1:  # also catches NaN
                raise RuntimeError(f"{type(change).__name__} returned images outside [0, 1], or not finite")
        else:
            shape = tuple(images.shape[1:])
            inputs = change(images, [change.make_params(shape, generator) for generator in generators])
        return vit(inputs), inputs, _nan_column(images)

    def _measure_rms(self, vit: NoisyViT, loader: DataLoader[Any], device: torch.device) -> Tensor | None:
        """rms(u) of the first images, the unit of noise; None without noise."""
        if self.noise is None:
            return None
        dataset: Any = loader.dataset
        items = [dataset[index] for index in range(min(NUM_RMS_IMAGES, len(dataset)))]
        images = torch.stack([item[0] for item in items if item is not None])
        return embedding_rms(vit, images.to(device), self.noise.layer)

    def _with_strength(self, strength: float) -> Any:
        change: Any = self.attack or self.corruption or self.noise
        return replace(change, **{self.param or "": strength})


def _class_index_map(vit: NoisyViT, class_subset: Sequence[int] | None) -> Tensor | None:
    """Position of every class in the subset, PAD_LABEL for classes outside of it; None without a subset."""
    if class_subset is None:
        return None
    size = vit.model.num_classes + 1  # the last entry maps PAD_LABEL (-1) to itself
    positions = torch.full((size,), PAD_LABEL, device=vit.mean.device)
    positions[list(class_subset)] = torch.arange(len(class_subset), device=positions.device)
    return positions


def _nan_column(images: Tensor) -> Tensor:
    return images.new_full((len(images),), float("nan"))


def split_on_oom(function: BatchFn, images: Tensor, labels: Tensor, ids: Sequence[str]) -> tuple[Tensor, ...]:
    """Call the function on a batch; a batch that does not fit in memory is halved until it does.

    Raises:
        torch.OutOfMemoryError, RuntimeError: a single image does not fit.
    """
    try:
        return function(images, labels, ids)
    except RuntimeError as error:  # OutOfMemoryError is a subclass
        if len(images) == 1 or not _is_out_of_memory(error):
            raise
    # Outside the except block: inside, the traceback would keep tensors alive.
    if images.is_cuda:
        torch.cuda.empty_cache()
    middle = len(images) // 2
    halves = slice(middle), slice(middle, None)
    parts = [split_on_oom(function, images[half], labels[half], ids[half]) for half in halves]
    return tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
