"""Summaries of the error under ImageNet-C's corruptions: mean corruption error, mCE and relative mCE.

Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations"
(arXiv 1903.12261), section 4.
"""

from pathlib import PurePath

import numpy as np

from nsaug.corruptions import TEST_CORRUPTIONS
from nsaug.data.names import wnids
from nsaug.evaluation.results import SUMMARY, BenchmarkResult, Summary

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
ON_THE_FLY = "_on_the_fly"
ERRORS = tuple(
    metric + suffix for suffix in ("", ON_THE_FLY) for metric in ("mean_corruption_error", "mCE", "relative_mCE")
)
"""Metrics over all corruptions; lower is better."""


def corruption_errors(results: list[BenchmarkResult]) -> list[Summary]:
    """Errors under the 15 test corruptions at all 5 severities, from the results of one model.

    E_c is the error under corruption c averaged over severities, and A_c is AlexNet's.

    - `corruption_error`: E_c, one for every corruption.
    - `mean_corruption_error`: mean of E_c.
    - `mCE`: mean of E_c / A_c (models of ImageNet's classes only).
    - `relative_mCE`: mean of (E_c - E_clean) / (A_c - A_clean) (models of ImageNet's classes only).

    All are linear in the errors of the images. They are omitted if a corruption or a severity is missing. For
    corruptions generated on the fly the names of the last three end in `_on_the_fly`.
    """
    return [*_summaries(results, stored=True), *_summaries(results, stored=False)]


def _summaries(results: list[BenchmarkResult], stored: bool) -> list[Summary]:
    complete = _complete_corruptions(results, stored)
    errors = {name: np.stack([_errors(result) for result in group]).mean(0) for name, group in complete.items()}
    summaries = [
        Summary(group[0].name, "corrupted", "corruption_error", _ids(group[0]), errors[name], group[0].notes)
        for name, group in complete.items()
    ]
    tested = [complete[name][0] for name in TEST_CORRUPTIONS if name in complete]
    if len(tested) < len(TEST_CORRUPTIONS) or not _same_images(tested):
        return summaries
    suffix, first = "" if stored else ON_THE_FLY, tested[0]
    means = _means(np.stack([errors[name] for name in TEST_CORRUPTIONS]), first, _clean_errors(results, like=first))
    return summaries + [
        Summary(metric + suffix, SUMMARY, metric + suffix, _ids(first), values, first.notes)
        for metric, values in means.items()
    ]


def _complete_corruptions(results: list[BenchmarkResult], stored: bool) -> dict[str, list[BenchmarkResult]]:
    """Results at all severities on the same images, by corruption."""
    by_name: dict[str, list[BenchmarkResult]] = {}
    for result in results:
        if result.corruption is not None and result.is_stored == stored and result.per_image is not None:
            by_name.setdefault(result.corruption, []).append(result)
    return {
        name: group
        for name, group in by_name.items()
        if sorted(result.strength or 0 for result in group) == SEVERITIES and _same_images(group)
    }


def _means(errors: np.ndarray, first: BenchmarkResult, clean: np.ndarray | None) -> dict[str, np.ndarray]:
    """Per-image values (n,) of the errors over all corruptions, from those of every corruption (15, n)."""
    means = {"mean_corruption_error": errors.mean(0)}
    if list(first.class_names) == wnids():
        alexnet = np.array([ALEXNET_ERROR[name] for name in TEST_CORRUPTIONS])
        means["mCE"] = (1 / alexnet) @ errors / len(TEST_CORRUPTIONS)
        if clean is not None:
            means["relative_mCE"] = (1 / (alexnet - ALEXNET_CLEAN_ERROR)) @ (errors - clean) / len(TEST_CORRUPTIONS)
    return means


def _ids(result: BenchmarkResult) -> list[str]:
    assert result.output is not None
    return result.output.ids


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
