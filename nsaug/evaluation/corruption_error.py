"""Summaries of the error under ImageNet-C's corruptions: mean corruption error, mCE and relative mCE.

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
from nsaug.evaluation.statistics import bootstrap_mean
from nsaug.utils.errors import UserError
from nsaug.utils.types import validated_dataclass

ALEXNET_ERROR = {
    "gaussian_noise": 0.886428, "shot_noise": 0.894468, "impulse_noise": 0.922640, "defocus_blur": 0.819880,
    "glass_blur": 0.826268, "motion_blur": 0.785948, "zoom_blur": 0.798360, "snow": 0.866816, "frost": 0.826572,
    "fog": 0.819324, "brightness": 0.564592, "contrast": 0.853204, "elastic_transform": 0.646056,
    "pixelate": 0.717840, "jpeg_compression": 0.606500,
}  # fmt: skip
"""AlexNet's error on ImageNet-C, averaged over severities."""
ALEXNET_CLEAN_ERROR = 0.435
"""AlexNet's error on the ImageNet validation images."""
SEVERITIES = [1.0, 2.0, 3.0, 4.0, 5.0]
SUMMARY = "summary"
"""Condition of rows that summarize several benchmarks."""
ON_THE_FLY = "_on_the_fly"
ERRORS = tuple(
    metric + suffix for suffix in ("", ON_THE_FLY) for metric in ("mean_corruption_error", "mCE", "relative_mCE")
)
"""Metrics over all corruptions; lower is better."""


@validated_dataclass
class CorruptionError:
    """Errors over the 15 test corruptions at all 5 severities.

    E_c is the error under corruption c averaged over severities, and A_c is AlexNet's.

    - `corruption_error`: E_c, one for every corruption.
    - `mean_corruption_error`: mean of E_c.
    - `mCE`: mean of E_c / A_c (ImageNet only).
    - `relative_mCE`: mean of (E_c - E_clean) / (A_c - A_clean) (ImageNet only).

    All are linear in the errors of the images, so that their intervals are a bootstrap over images. They are omitted if
    a corruption or a severity is missing. For corruptions generated on the fly their names end in `_on_the_fly`.
    """

    alexnet: bool = False
    """Normalize by AlexNet's errors; valid on ImageNet only."""

    def check(self, data: TestDataset) -> None:
        """Raise UserError if AlexNet's errors are requested for data other than ImageNet."""
        if self.alexnet and not isinstance(getattr(data, "source", None), ImageNet):
            raise UserError(
                "suite.corruption_error.alexnet=true: mCE is normalized by AlexNet's errors on ImageNet-C and means"
                " nothing on other data; set it to false to report the mean corruption error"
            )

    def rows(self, results: list[BenchmarkResult]) -> list[dict[str, Any]]:
        """Table rows computed from the results of one model."""
        return [*self._rows(results, stored=True), *self._rows(results, stored=False)]

    def _rows(self, results: list[BenchmarkResult], stored: bool) -> list[dict[str, Any]]:
        by_name = {name: result for name, result in _corruption_results(results) if stored == _is_stored(result)}
        errors = {name: _errors(result).mean(0) for name, result in by_name.items()}
        rows = [_row(by_name[name], by_name[name].name, "corruption_error", error) for name, error in errors.items()]
        first = by_name.get(TEST_CORRUPTIONS[0])
        if first is None or any(
            name not in by_name or _image_names(by_name[name]) != _image_names(first) for name in TEST_CORRUPTIONS
        ):
            return rows
        stacked = np.stack([errors[name] for name in TEST_CORRUPTIONS])
        means = {"mean_corruption_error": stacked.mean(0)}
        if self.alexnet:
            alexnet = np.array([ALEXNET_ERROR[name] for name in TEST_CORRUPTIONS])
            means["mCE"] = (1 / alexnet) @ stacked / len(TEST_CORRUPTIONS)
            clean = _clean_errors(results, like=first)
            if clean is not None:
                weights = 1 / (alexnet - ALEXNET_CLEAN_ERROR)
                means["relative_mCE"] = weights @ (stacked - clean) / len(TEST_CORRUPTIONS)
        for metric, mean in means.items():
            name = metric if stored else f"{metric}{ON_THE_FLY}"
            rows.append(_row(first, name, name, mean) | {"condition": SUMMARY})
        return rows


def _row(result: BenchmarkResult, benchmark: str, metric: str, per_image: np.ndarray) -> dict[str, Any]:
    row = {"benchmark": benchmark, "condition": "corrupted", "strength": None, "metric": metric}
    row["notes"] = "; ".join(result.notes)
    interval = vars(bootstrap_mean(per_image)) | {"n": len(per_image), "over": "images"}
    return result.model.columns | row | interval


def _corruption_results(results: list[BenchmarkResult]) -> Iterator[tuple[str, BenchmarkResult]]:
    """Results of common corruptions at all five severities, with the corruption's name."""
    for result in results:
        name, scores = result.benchmark.corruption_name, result.per_image
        if name is not None and scores is not None and sorted(map(_to_float, scores.strengths)) == SEVERITIES:
            yield name, result


def _to_float(strength: float | None) -> float:
    return float("nan") if strength is None else float(strength)


def _is_stored(result: BenchmarkResult) -> bool:
    return result.benchmark.data is not None


def _errors(result: BenchmarkResult) -> np.ndarray:
    """Error of every image at every strength, (strengths, n)."""
    assert result.per_image is not None
    return np.stack([1.0 - scores.top1 for scores in result.per_image.scores])


def _clean_errors(results: list[BenchmarkResult], like: BenchmarkResult) -> np.ndarray | None:
    """Errors (n,) on the clean images with the same file names in the same order; None if there are none."""
    for result in results:
        if result.benchmark.condition == "clean" and _image_names(result) == _image_names(like):
            return _errors(result)[0]
    return None


def _image_names(result: BenchmarkResult) -> list[str] | None:
    return None if result.per_image is None else [PurePath(name).stem for name in result.per_image.ids]
