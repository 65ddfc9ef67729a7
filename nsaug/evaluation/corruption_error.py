"""Summaries of the error under ImageNet-C's corruptions: mean corruption error, mCE and relative mCE.

Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations"
(arXiv 1903.12261), section 4.
"""

from pathlib import PurePath
from typing import Any

import numpy as np

from nsaug.corruptions import TEST_CORRUPTIONS
from nsaug.data.sources.imagenet import wnids
from nsaug.evaluation.results import BenchmarkResult
from nsaug.evaluation.statistics import bootstrap_mean

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


def corruption_error_rows(results: list[BenchmarkResult]) -> list[dict[str, Any]]:
    """Table rows on the 15 test corruptions at all 5 severities, computed from the results of one model.

    E_c is the error under corruption c averaged over severities, and A_c is AlexNet's.

    - `corruption_error`: E_c, one for every corruption.
    - `mean_corruption_error`: mean of E_c.
    - `mCE`: mean of E_c / A_c (models of ImageNet's classes only).
    - `relative_mCE`: mean of (E_c - E_clean) / (A_c - A_clean) (models of ImageNet's classes only).

    All are linear in the errors of the images, so that their intervals are a bootstrap over images. They are omitted if
    a corruption or a severity is missing. For corruptions generated on the fly their names end in `_on_the_fly`.
    """
    return [*_rows(results, stored=True), *_rows(results, stored=False)]


def _rows(results: list[BenchmarkResult], stored: bool) -> list[dict[str, Any]]:
    by_name: dict[str, list[BenchmarkResult]] = {}
    for result in results:
        if result.corruption is not None and result.is_stored == stored and result.per_image is not None:
            by_name.setdefault(result.corruption, []).append(result)
    complete = {
        name: group
        for name, group in by_name.items()
        if sorted(result.strength or 0 for result in group) == SEVERITIES and _same_images(group)
    }
    errors = {name: np.stack([_errors(result) for result in group]).mean(0) for name, group in complete.items()}
    rows = [
        _row(complete[name][0], complete[name][0].name, "corruption_error", error) for name, error in errors.items()
    ]
    tested = [complete[name][0] for name in TEST_CORRUPTIONS if name in complete]
    if len(tested) < len(TEST_CORRUPTIONS) or not _same_images(tested):
        return rows
    first, stacked = tested[0], np.stack([errors[name] for name in TEST_CORRUPTIONS])
    means = {"mean_corruption_error": stacked.mean(0)}
    if list(first.class_names) == wnids():
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


def _errors(result: BenchmarkResult) -> np.ndarray:
    """Error of every image, (n,)."""
    assert result.per_image is not None
    return 1.0 - result.per_image.scores.top1


def _clean_errors(results: list[BenchmarkResult], like: BenchmarkResult) -> np.ndarray | None:
    """Errors (n,) on the clean images with the same file names in the same order; None if there are none."""
    for result in results:
        if result.condition == "clean" and result.per_image is not None and _same_images([result, like]):
            return _errors(result)
    return None


def _same_images(results: list[BenchmarkResult]) -> bool:
    names = [_image_names(result) for result in results]
    return all(other == names[0] for other in names)


def _image_names(result: BenchmarkResult) -> list[str]:
    assert result.per_image is not None
    return [PurePath(image_id).stem for image_id in result.per_image.ids]
