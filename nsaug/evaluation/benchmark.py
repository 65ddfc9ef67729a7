"""One entry of a suite: what is done to the images of a data set, at which strengths."""

import dataclasses
import zlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nsaug.draws import generator
from nsaug.settings import Number, settings
from nsaug.vit import ViT


@settings
class Benchmark:
    """Top-1 accuracy on clean images, or at each strength of an attack or a corruption.

    Attributes:
        attack: one of `nsaug.attacks`.
        corruption: one of `nsaug.corruptions`.
        vary: the setting of either that is its strength.
        values: the strengths, in that setting's unit.
    """

    attack: Any = None
    corruption: Any = None
    vary: str | None = None
    values: tuple[Number, ...] = ()

    def __post_init__(self) -> None:
        kinds = [kind for kind in (self.attack, self.corruption) if kind is not None]
        if len(kinds) > 1:
            raise ValueError("a benchmark has an attack or a corruption, not both")
        if bool(kinds) != bool(self.vary) or bool(kinds) != bool(self.values):
            raise ValueError(
                "a benchmark with an attack or a corruption says what to vary and its values; no other does"
            )
        for strength in self.values:  # builds each once, so that a bad strength is found before any image is read
            self._at(strength)

    def run(
        self, name: str, vit: ViT, batches: Any, device: torch.device, seed: int, advance: Callable[[], None]
    ) -> list[dict[str, Any]]:
        """Rows of the tidy table, in fp32 and eval mode.

        Args:
            name: the benchmark's key in its suite.
            vit: on `device`.
            batches: (images (B, 3, H, W) in [0, 1], labels (B,), ids) repeatedly.
            seed: of random starts and corruptions. A corruption's draws follow from it, the image's id and the
                strength's place, and depend on neither batch size nor order.
            advance: called after each batch.

        Returns:
            A row for each strength: benchmark, condition, strength, metric, value in [0, 1], n images.
        """
        strengths: tuple[float | None, ...] = self.values or (None,)
        correct = dict.fromkeys(strengths, 0)
        seen = 0
        vit.eval()
        for number, (images, labels, ids) in enumerate(batches):
            images, labels = images.to(device), labels.to(device)
            for place, strength in enumerate(strengths):
                changed = self._changed(vit, images, labels, ids, (seed, place, number))
                with torch.no_grad():
                    correct[strength] += int((vit(changed).argmax(1) == labels).sum())
            seen += len(images)
            advance()
        condition = "attacked" if self.attack else "corrupted" if self.corruption else "clean"
        return [
            {
                "benchmark": name,
                "condition": condition,
                "strength": strength,
                "metric": "top1",
                "value": correct[strength] / seen,
                "n": seen,
            }
            for strength in strengths
        ]

    def _at(self, strength: float) -> Any:
        return dataclasses.replace(self.attack or self.corruption, **{self.vary or "": strength})

    def _changed(self, vit: ViT, images: Tensor, labels: Tensor, ids: list[str], key: tuple[int, int, int]) -> Tensor:
        """The images at one strength; the key is (seed, place of the strength, number of the batch)."""
        seed, place, _ = key
        if self.attack is not None:
            return self._at(self.values[place])(vit, images, labels, generator(images.device, *key))
        if self.corruption is not None:
            corruption = self._at(self.values[place])
            own = [generator("cpu", seed, place, zlib.crc32(image.encode())) for image in ids]
            draws = torch.stack([corruption.draw(tuple(images.shape[1:]), draw) for draw in own])
            return corruption(images, draws.to(images))
        return images


def subset(images: Any, most: int | None, seed: int) -> Any:
    """At most `most` images of a set, drawn by the seed, in the set's own order."""
    if most is None or len(images) <= most:
        return images
    chosen = torch.randperm(len(images), generator=generator("cpu", seed))[:most]
    return images.subset(chosen.sort().values.tolist())
