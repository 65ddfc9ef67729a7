"""One entry of a suite: what is done to the images of a data set, at which strengths."""

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

PICTURES = 6
"""How many images are kept as the model saw them."""
CONDITIONS = ("clean", "relabelled", "shifted", "attacked", "corrupted", "noised")
"""What a benchmark does to images; see `Benchmark.condition`."""
REFERENCE = 64
"""On how many of the first images rms(u) is measured, whatever the batch size."""
DOUBTED = 16
"""On how many of the first images a model is asked whether attacks can be trusted."""


class Halved(Protocol):
    def __call__(self, images: Tensor, labels: Tensor, ids: Sequence[str]) -> tuple[Tensor, ...]: ...


@validated_dataclass
class Benchmark:
    """Clean images, or images at each strength of an attack, of a corruption, or of nullspace noise.

    Attributes:
        attack: one of `nsaug.attacks`.
        corruption: one of `nsaug.corruptions`.
        noise: a synthesis of ε-approximate nullspace noise, refined for each image on the model that is judged.
        vary: the setting of whichever it is that is its strength.
        values: the strengths, in that setting's unit.
        transfer: whether the attack's images are made on each of the other models in turn, and not on the judged one.
        data: test images other than the model's own, of the same classes: a `TestDataset`, or an `ImageDataModule` for
            its test split. Stored corruptions have their severities as strengths.
        classes: the class indices that images and answers are restricted to, or the list that names them; where None
            those that the data count.
    """

    attack: Any = None
    corruption: Any = None
    noise: NullspaceNoise | None = None
    vary: str | None = None
    values: tuple[FiniteFloat, ...] = ()
    transfer: bool = False
    data: Annotated[Any, BeforeValidator(as_test_dataset)] = None
    classes: Literal["imagenet_a", "imagenet_r"] | tuple[NonNegativeInt, ...] | None = None

    def __post_init__(self) -> None:
        kinds = [kind for kind in (self.attack, self.corruption, self.noise) if kind is not None]
        if len(kinds) > 1:
            raise ValueError("a benchmark has one of attack, corruption and noise")
        if bool(kinds) != bool(self.vary) or bool(kinds) != bool(self.values):
            raise ValueError(
                "a benchmark with an attack, a corruption or noise says what to vary and its values; no other does"
            )
        if self.data is not None and not isinstance(self.data, TestDataset):
            raise ValueError("data has to be one of nsaug.data")
        if self.transfer and self.attack is None:
            raise ValueError("only an attack's images are transferred: set attack, or transfer to false")
        if kinds and self._stored:
            raise ValueError("stored corruptions are judged as they are: set no attack, corruption or noise")
        if self.noise is not None and self.noise.scope != "per_image":
            raise ValueError("a benchmark judges each image by a noise of its own: set scope to per_image")
        for strength in self.values:  # builds each once, so that a bad strength is found before any image is read
            self._at(strength)

    @property
    def condition(self) -> str:
        """What is done to the images, in a word."""
        if self.attack is not None:
            return "attacked"
        if self.corruption is not None:
            return "corrupted"
        if self.noise is not None:
            return "noised"
        return "clean" if self.data is None else str(self.data.condition)

    @property
    def on_own_images(self) -> bool:
        """Whether it judges all test images of the model's own data."""
        return self.data is None and self.classes is None

    @property
    def corrupted_by(self) -> str | None:
        """The name of the common corruption, of any severity."""
        if isinstance(self.corruption, Corruption):
            return str(self.corruption.name)
        return str(self.data.corruption) if self._stored else None

    @property
    def strengths(self) -> tuple[float | None, ...]:
        return tuple(self.data.severities) if self._stored else self.values or (None,)

    @property
    def settings(self) -> dict[str, Any]:
        """All that its results depend on beside the images, defaults included, as plain values."""
        return to_plain(replace(self, data=None)) | {"data": self.data and self.data.cache_fields}

    def class_subset(self, own: TestDataset) -> list[int] | None:
        """Class indices that images and answers are restricted to, `own` being the model's data; None for all."""
        if self.classes is not None:
            return class_subset_indices(self.classes) if isinstance(self.classes, str) else sorted(self.classes)
        class_subset = (self.data or own).class_subset
        return None if class_subset is None else list(class_subset)

    @property
    def _stored(self) -> bool:
        return isinstance(self.data, StoredCorruption)

    @property
    def forwards(self) -> int:
        """About how many forwards an image costs: what a forecast of the time left goes by."""
        each = 1
        if self.attack is not None:
            each += 3 * getattr(self.attack, "num_steps", 1) * getattr(self.attack, "restarts", 1)
        elif self.noise is not None:
            each += 1 + 3 * self.noise.num_steps
        return each * len(self.strengths)

    def work(self, count: int) -> int:
        """About how many forwards it takes, on `count` images."""
        return count * self.forwards

    def run(
        self,
        vit: NoisyViT,
        loader: DataLoader[Any],
        seed: int,
        advance: Callable[[int], None],
        attacked_on: NoisyViT | None = None,
        class_subset: Sequence[int] | None = None,
    ) -> PerImageResult:
        """Judges every image at every strength, in fp32 and eval mode.

        Args:
            vit: on the device to work on.
            loader: of (images (B, 3, H, W) in [0, 1], labels (B,), ids), labels as class indices or sets of them; None
                stands for a batch that could not be read.
            seed: of random starts and corruptions. An image's draws follow from it, the image's id and the strength's
                place, and depend on neither batch size nor order.
            advance: called after each batch with the number of forwards done.
            attacked_on: the model that an attack's images are made on, where it is another; on the same device.
            counted: the class indices that answers are taken among, as `self.counted` gives them; None for all.
        """
        vit.eval()
        target = vit if attacked_on is None else attacked_on.eval()
        with (
            vit.restrict_classes(class_subset),
            nullcontext() if target is vit else target.restrict_classes(class_subset),
        ):
            result = self._run(vit, target, loader, seed, advance, _places(vit, class_subset))
        if class_subset is None:
            return result
        indices = np.array(class_subset)
        judged = [
            replace(each, label=indices[each.label], prediction=indices[each.prediction]) for each in result.judged
        ]
        return replace(result, judged=judged)

    def _run(
        self,
        vit: NoisyViT,
        target: NoisyViT,
        loader: DataLoader[Any],
        seed: int,
        advance: Callable[[int], None],
        places: Tensor | None,
    ) -> PerImageResult:
        """As `run`, in places among the classes that count: of each class index its place."""
        device = vit.mean.device
        rms = self._reference(vit, loader, device)
        found: list[dict[str, list[np.ndarray]]] = [{name: [] for name in FIELDS} for _ in self.strengths]
        pictures: list[list[Tensor]] = [[] for _ in self.strengths]
        count = len(loader.dataset)  # type: ignore[arg-type]
        pictured = sorted({round(each) for each in np.linspace(0, count - 1, PICTURES)})
        seen: list[str] = []
        for batch in loader:
            if batch is None:
                continue
            images, labels, ids = batch
            images, labels = images.to(device), labels.to(device)
            if places is not None:
                labels = places[labels]
            if self.attack is not None and not seen:
                some = min(len(images), DOUBTED)
                for doubt in attack_warnings(target, images[:some], labels[:some]):
                    log.warning("%s may find less on this model than there is: %s", type(self.attack).__name__, doubt)
            shown_here = [each - len(seen) for each in pictured if 0 <= each - len(seen) < len(ids)]
            for place in range(len(self.strengths)):

                def at_this_strength(
                    images: Tensor,
                    labels: Tensor,
                    ids: Sequence[str],
                    place: int = place,
                    show: bool = bool(shown_here),
                ) -> tuple[Tensor, ...]:
                    return self._logits(vit, target, images, labels, ids, place, seed, rms, show)

                logits, shown, converged = in_memory(at_this_strength, images, labels, ids)
                for name, values in score_predictions(logits, labels, converged).items():
                    found[place][name].append(values.cpu().numpy())
                pictures[place] += [shown[each].cpu() for each in shown_here]
            seen += ids
            advance(self.work(len(images)))
        if not seen:
            raise UserError(f"none of its {count:,} images can be read")
        pictured = [each for each in pictured if each < len(seen)]
        judged = [PerImageScores(**{name: np.concatenate(parts) for name, parts in each.items()}) for each in found]
        stacked = torch.stack([torch.stack(each) for each in pictures])
        kept = (stacked.clamp(0, 1) * 255).round().byte().permute(0, 1, 3, 4, 2).numpy()
        return PerImageResult(self.strengths, seen, judged, pictured, kept)

    @torch.no_grad()
    def _logits(
        self,
        vit: NoisyViT,
        target: NoisyViT,
        images: Tensor,
        labels: Tensor,
        ids: Sequence[str],
        place: int,
        seed: int,
        rms: Tensor | None,
        show: bool,
    ) -> tuple[Tensor, ...]:
        """Logits at one strength, the images as the model saw them, and of noise which images' reached ε.

        With `show` unset, noise is not drawn into the images: its pixels are dear.
        """
        if self._stored:
            images = images[:, place]
        if self.attack is None and self.corruption is None and self.noise is None:
            return vit(images), images, _nothing(images)
        kind = self._at(self.values[place])
        key: tuple[int, ...] = (seed, place)
        if isinstance(kind, Corruption):  # the same whatever else the suite holds
            key = (seed, zlib.crc32(kind.name.encode()), kind.severity)
        own = [make_generator("cpu", *key, zlib.crc32(image.encode())) for image in ids]
        if self.noise is not None:
            refined = synthesize(vit, images, kind, generator=own, rms=rms)
            change = to_pixels(vit, refined.noise) if show else None
            shown = images if change is None else images + change
            return vit(images, refined.noise, kind.layer), shown, refined.converged.float()
        if self.attack is not None:
            changed = kind(target, images, labels, own)
            if not 0 <= float(changed.min()) <= float(changed.max()) <= 1:  # NaN is not either
                raise RuntimeError(f"{type(kind).__name__} left [0, 1], or gave images that are not finite")
        else:
            changed = kind(images, [kind.make_params(tuple(images.shape[1:]), draw) for draw in own])
        return vit(changed), changed, _nothing(images)

    def _reference(self, vit: NoisyViT, loader: DataLoader[Any], device: torch.device) -> Tensor | None:
        """rms(u) on the first images, which noise is counted in."""
        if self.noise is None:
            return None
        images: Any = loader.dataset
        some = [images[index] for index in range(min(REFERENCE, len(images)))]
        first = torch.stack([each[0] for each in some if each is not None])
        return embedding_rms(vit, first.to(device), self.noise.layer)

    def _at(self, strength: float) -> Any:
        kind: Any = self.attack or self.corruption or self.noise
        return replace(kind, **{self.vary or "": strength})


def _places(vit: NoisyViT, class_subset: Sequence[int] | None) -> Tensor | None:
    """Of each class index, its place among the classes that count; `NO_CLASS` where it does not."""
    if class_subset is None:
        return None
    places = torch.full((vit.model.num_classes + 1,), PAD_LABEL, device=vit.mean.device)  # the last is NO_CLASS's own
    places[list(class_subset)] = torch.arange(len(class_subset), device=places.device)
    return places


def _nothing(images: Tensor) -> Tensor:
    return images.new_full((len(images),), float("nan"))


def in_memory(function: Halved, images: Tensor, labels: Tensor, ids: Sequence[str]) -> tuple[Tensor, ...]:
    """The function's tensors for a batch; one that does not fit in memory is halved until it does.

    Raises:
        torch.OutOfMemoryError, RuntimeError: a single image does not fit.
    """
    try:
        return function(images, labels, ids)
    except RuntimeError as error:  # OutOfMemoryError is one
        if len(images) == 1 or not _out_of_memory(error):
            raise
    # Outside the handler: there the traceback would hold on to what has to be freed.
    if images.is_cuda:
        torch.cuda.empty_cache()
    half = len(images) // 2
    parts = [in_memory(function, images[part], labels[part], ids[part]) for part in (slice(half), slice(half, None))]
    return tuple(torch.cat(each) for each in zip(*parts, strict=True))


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
