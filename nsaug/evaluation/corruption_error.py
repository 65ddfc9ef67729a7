"""The errors under ImageNet-C's corruptions in one number: three numbers that are often confused, each by its name.

Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations"
(arXiv 1903.12261), section 4.
"""

from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

import numpy as np

from nsaug.corruptions import TEST_CORRUPTIONS
from nsaug.data import ImageNet, TestDataset
from nsaug.evaluation.runner import BenchmarkResult
from nsaug.evaluation.statistics import mean_over_images
from nsaug.utils.errors import UserError
from nsaug.utils.types import validated_dataclass

ALEXNET = {
    "gaussian_noise": 0.886428, "shot_noise": 0.894468, "impulse_noise": 0.922640, "defocus_blur": 0.819880,
    "glass_blur": 0.826268, "motion_blur": 0.785948, "zoom_blur": 0.798360, "snow": 0.866816, "frost": 0.826572,
    "fog": 0.819324, "brightness": 0.564592, "contrast": 0.853204, "elastic_transform": 0.646056,
    "pixelate": 0.717840, "jpeg_compression": 0.606500,
}  # fmt: skip
"""AlexNet's error on ImageNet-C, the mean over severities."""
ALEXNET_CLEAN = 0.435
"""On ImageNet's own validation images."""
SUMMARY = "summary"
"""Condition of rows that stand for several benchmarks."""
ON_THE_FLY = "_on_the_fly"
ERRORS = tuple(
    metric + made for made in ("", ON_THE_FLY) for metric in ("mean_corruption_error", "mCE", "relative_mCE")
)
"""Over all corruptions; less is better."""


@validated_dataclass
class CorruptionError:
    """Errors over the 15 test corruptions at all 5 severities.

    For each corruption `corruption_error`, the mean error over the severities, E_c. Over all of them
    `mean_corruption_error`, the mean of E_c; and on ImageNet `mCE`, the mean of E_c / A_c, A_c being AlexNet's, and
    `relative_mCE`, the mean of (E_c - E_clean) / (A_c - A_clean). All of them are linear in each image's errors, so
    that their intervals are a bootstrap over images. There are none where a corruption or a severity is missing.
    Those of corruptions that are made on the fly are numbers of their own: their names end in `_on_the_fly`.
    """

    alexnet: bool = False
    """Whether to normalise by AlexNet's errors, which mean nothing on other data than ImageNet."""

    def check(self, data: TestDataset) -> None:
        """Raises UserError where normalising by AlexNet is asked for off ImageNet."""
        if self.alexnet and not isinstance(getattr(data, "source", None), ImageNet):
            raise UserError(
                "suite.corruption_error.alexnet=true: mCE is normalised by AlexNet's errors on ImageNet-C and means"
                " nothing on other data; set it to false, and the mean corruption error is reported"
            )

    def rows(self, outcomes: list[BenchmarkResult]) -> list[dict[str, Any]]:
        """The rows that follow from one subject's outcomes."""
        return [*self._rows(outcomes, stored=True), *self._rows(outcomes, stored=False)]

    def _rows(self, outcomes: list[BenchmarkResult], stored: bool) -> list[dict[str, Any]]:
        found = {name: outcome for name, outcome in _corrupted(outcomes) if stored == _is_stored(outcome)}
        errors = {name: _wrong(outcome).mean(0) for name, outcome in found.items()}
        rows = [_row(found[name], found[name].entry.name, "corruption_error", each) for name, each in errors.items()]
        if all(
            name in found and _names(found[name]) == _names(found[TEST_CORRUPTIONS[0]]) for name in TEST_CORRUPTIONS
        ):
            every = np.stack([errors[name] for name in TEST_CORRUPTIONS])
            means = {"mean_corruption_error": every.mean(0)}
            if self.alexnet:
                theirs = np.array([ALEXNET[name] for name in TEST_CORRUPTIONS])
                means["mCE"] = (1 / theirs) @ every / len(TEST_CORRUPTIONS)
                clean = _clean(outcomes, like=found[TEST_CORRUPTIONS[0]])
                if clean is not None:
                    means["relative_mCE"] = (1 / (theirs - ALEXNET_CLEAN)) @ (every - clean) / len(TEST_CORRUPTIONS)
            for metric, mean in means.items():
                name = metric if stored else f"{metric}{ON_THE_FLY}"
                rows.append(_row(found[TEST_CORRUPTIONS[0]], name, name, mean) | {"condition": SUMMARY})
        return rows


def _row(outcome: BenchmarkResult, benchmark: str, metric: str, per_image: np.ndarray) -> dict[str, Any]:
    told = {"benchmark": benchmark, "condition": "corrupted", "strength": None, "metric": metric}
    told["notes"] = "; ".join(outcome.notes)
    spread = vars(mean_over_images(per_image)) | {"n": len(per_image), "over": "images"}
    return outcome.subject.columns | told | spread


def _corrupted(outcomes: list[BenchmarkResult]) -> Iterator[tuple[str, BenchmarkResult]]:
    """Those under a common corruption at all five severities, each with its name."""
    for outcome in outcomes:
        name = outcome.entry.benchmark.corrupted_by
        result = outcome.per_image
        if name is not None and result is not None and sorted(map(_number, result.strengths)) == SEVERITIES:
            yield name, outcome


SEVERITIES = [1.0, 2.0, 3.0, 4.0, 5.0]


def _number(strength: float | None) -> float:
    return float("nan") if strength is None else float(strength)


def _is_stored(outcome: BenchmarkResult) -> bool:
    return outcome.entry.benchmark.data is not None


def _wrong(outcome: BenchmarkResult) -> np.ndarray:
    """Each image's error at each strength, (strengths, n)."""
    assert outcome.per_image is not None
    return np.stack([1.0 - judged.top1 for judged in outcome.per_image.judged])


def _clean(outcomes: list[BenchmarkResult], like: BenchmarkResult) -> np.ndarray | None:
    """Errors on the same images as they are, (n,): those that have the same file names in the same order."""
    for outcome in outcomes:
        if outcome.entry.benchmark.condition == "clean" and _names(outcome) == _names(like):
            return _wrong(outcome)[0]
    return None


def _names(outcome: BenchmarkResult) -> list[str] | None:
    return None if outcome.per_image is None else [PurePath(name).stem for name in outcome.per_image.ids]
