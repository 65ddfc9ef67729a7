"""The errors under ImageNet-C's corruptions in one number: three numbers that are often confused, each by its name.

Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations"
(arXiv 1903.12261), section 4.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from nsaug.corruptions import TEST, Corruption
from nsaug.evaluation.benchmark import Benchmark
from nsaug.evaluation.runner import Outcome
from nsaug.evaluation.statistics import mean_over_images
from nsaug.evaluation.store import Result
from nsaug.settings import NsaugError, settings

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
ERRORS = ("mean_corruption_error", "mCE", "relative_mCE")
"""Over all corruptions; less is better."""


@settings
class CorruptionError:
    """Errors over the 15 test corruptions at all 5 severities.

    For each corruption `corruption_error`, the mean error over the severities, E_c. Over all of them
    `mean_corruption_error`, the mean of E_c; and on ImageNet `mCE`, the mean of E_c / A_c, A_c being AlexNet's, and
    `relative_mCE`, the mean of (E_c - E_clean) / (A_c - A_clean). All of them are linear in each image's errors, so
    that their intervals are a bootstrap over images. There are none where a corruption or a severity is missing.
    """

    alexnet: bool = False
    """Whether to normalise by AlexNet's errors, which mean nothing on other data than ImageNet."""

    def check(self, class_names: Iterable[str]) -> None:
        """Raises NsaugError where normalising by AlexNet is asked for off ImageNet."""
        from timm.data import ImageNetInfo

        if self.alexnet and list(class_names) != ImageNetInfo("imagenet-1k").label_names():
            raise NsaugError(
                "suite.corruption_error.alexnet=true: mCE is normalised by AlexNet's errors on ImageNet-C and means"
                " nothing on other data; set it to false, and the mean corruption error is reported"
            )

    def rows(self, outcomes: list[Outcome]) -> list[dict[str, Any]]:
        """The rows that follow from one subject's outcomes."""
        found = _errors(outcomes)
        rows = [_row(outcomes[0], name, "corrupted", "corruption_error", error) for name, error in found.items()]
        if all(name in found for name in TEST):
            every = np.stack([found[name] for name in TEST])
            means = {"mean_corruption_error": every.mean(0)}
            if self.alexnet:
                theirs = np.array([ALEXNET[name] for name in TEST])
                means["mCE"] = (1 / theirs) @ every / len(TEST)
                clean = _clean(outcomes)
                if clean is not None and len(clean) == every.shape[1]:
                    means["relative_mCE"] = (1 / (theirs - ALEXNET_CLEAN)) @ (every - clean) / len(TEST)
            rows += [_row(outcomes[0], metric, SUMMARY, metric, mean) for metric, mean in means.items()]
        return rows


def _row(outcome: Outcome, benchmark: str, condition: str, metric: str, per_image: np.ndarray) -> dict[str, Any]:
    told = {"benchmark": benchmark, "condition": condition, "strength": None, "metric": metric}
    spread = vars(mean_over_images(per_image)) | {"n": len(per_image), "over": "images"}
    return outcome.subject.columns | told | spread


def _errors(outcomes: list[Outcome]) -> dict[str, np.ndarray]:
    """Each image's mean error over the severities, (n,), by corruption, for those that have all five."""
    found = {}
    for outcome in outcomes:
        kind = outcome.entry.benchmark.corruption if isinstance(outcome.entry.benchmark, Benchmark) else None
        result = outcome.per_image
        if isinstance(kind, Corruption) and result is not None and sorted(map(_number, result.strengths)) == SEVERITIES:
            found[str(kind.name)] = _wrong(result).mean(0)
    return found


SEVERITIES = [1.0, 2.0, 3.0, 4.0, 5.0]


def _number(strength: float | None) -> float:
    return float("nan") if strength is None else float(strength)


def _wrong(result: Result) -> np.ndarray:
    return np.stack([1.0 - judged.top1 for judged in result.judged])


def _clean(outcomes: list[Outcome]) -> np.ndarray | None:
    for outcome in outcomes:
        if outcome.entry.benchmark.condition == "clean" and outcome.per_image is not None:
            return _wrong(outcome.per_image)[0]
    return None
