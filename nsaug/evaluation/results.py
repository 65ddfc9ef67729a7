"""Results of an evaluation: scores of images and measurements of analyses."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from nsaug.evaluation.metrics import PerImageScores
from nsaug.evaluation.models import EvalModel

SUMMARY = "summary"
"""Condition of numbers that summarize several benchmarks."""
AVERAGED = "averaged"
"""Condition of numbers that are averaged over the strengths of one attack."""


@dataclass(frozen=True)
class PerImageResult:
    """Scores of one model on one benchmark at one strength.

    Attributes:
        ids: ids of the n images.
        scores: their scores.
        sample_images: (k, H, W, 3) in uint8, the first k images as the model saw them.
        notes: what readers of the results have to know.
    """

    ids: list[str]
    scores: PerImageScores
    sample_images: np.ndarray
    notes: tuple[str, ...] = ()


class Measurement(NamedTuple):
    """One number of an analysis.

    Attributes:
        condition: kind of noise, or whatever else was measured.
        strength: strength of the condition; None if it has none.
        metric: name of the metric.
        noise_index: index of the noise, if several were measured.
        value: the number.
    """

    condition: str
    strength: float | None
    metric: str
    noise_index: int
    value: float


@dataclass(frozen=True)
class AnalysisResult:
    """Measurements of one model.

    Attributes:
        measurements: all numbers.
        ids: ids of the images that were measured on.
        titles: titles of the images to show in the report.
        images: the images to show, (H, W, 3) in uint8, all of one size.
        noises: (M, N, D), for analyses that transfer them to other models.
        notes: what readers of the results have to know.
    """

    measurements: list[Measurement]
    ids: list[str]
    titles: list[str] = field(default_factory=list)
    images: list[np.ndarray] = field(default_factory=list)
    noises: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 0), np.float32))
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class BenchmarkResult:
    """Result of one model on one benchmark at one strength.

    Attributes:
        model: the model.
        name: name of the benchmark in the suite; for transferred attacks with the name of the other model.
        strength: the strength; None if the benchmark has none.
        condition: what was done to the images, one of CONDITIONS; "analyzed" for analyses.
        output: scores or measurements; None if the benchmark failed.
        failure: why it failed.
        corruption: name of the common corruption, generated or stored.
        is_own_data: whether it was evaluated on all test images of the model's own data, so that its strengths continue
            the clean accuracy.
        is_stored: whether the images are a data set of their own.
        class_names: by class index.
        weights: digest of the model's architecture and weights; empty if it could not be loaded.
    """

    model: EvalModel
    name: str
    strength: float | None
    condition: str
    output: PerImageResult | AnalysisResult | None
    failure: str | None = None
    corruption: str | None = None
    is_own_data: bool = True
    is_stored: bool = False
    class_names: Sequence[str] = ()
    weights: str = ""

    @property
    def per_image(self) -> PerImageResult | None:
        """The output of a benchmark that scores every image; None for others."""
        return self.output if isinstance(self.output, PerImageResult) else None

    @property
    def analysis(self) -> AnalysisResult | None:
        """The output of an analysis; None for others."""
        return self.output if isinstance(self.output, AnalysisResult) else None

    @property
    def notes(self) -> tuple[str, ...]:
        return () if self.output is None else self.output.notes


@dataclass(frozen=True)
class Summary:
    """A mean over images that combines several results of a model, such as the score.

    Attributes:
        benchmark: its name in tables, with `condition` and `metric`; a summary has no strength.
        condition: what it combines.
        metric: what it measures.
        ids: ids of the n images.
        values: (n,), one per image.
        notes: what readers of the results have to know.
    """

    benchmark: str
    condition: str
    metric: str
    ids: list[str]
    values: np.ndarray
    notes: tuple[str, ...] = ()


def format_strength(strength: float, condition: str) -> str:
    """A strength as text; an attack's radius in 1/255 if it is a whole number of them, or a small short one.

    Radii with two decimals, such as 0.02, stay as they are: those of attacks on embeddings are in rms(u).
    """
    levels = 255 * strength
    decimals = 2 if levels < 1 else 1 if levels < 10 else 0
    is_fraction = round(strength, 2) != strength and abs(levels - round(levels, decimals)) < 1e-6
    if condition == "attacked" and 0 < levels < 255 and is_fraction:
        return f"{round(levels, decimals):g}/255"
    return f"{strength:g}"
