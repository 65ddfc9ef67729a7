"""Numbers that combine several results of a model: score, expected robustness, errors over all corruptions."""

from collections.abc import Mapping

import numpy as np

from nsaug.evaluation import statistics
from nsaug.evaluation.corruption_error import corruption_errors
from nsaug.evaluation.models import EvalModel
from nsaug.evaluation.results import AVERAGED, SUMMARY, BenchmarkResult, Summary, format_strength

SCORE = "score"
"""Benchmark and metric of the score's rows."""
EXPECTED_ROBUSTNESS = "expected_robustness"

Weights = Mapping[str, float]
"""Weights of benchmarks in the score, by name; `corruptions` means all corruptions generated on the fly."""


def summarize(results: list[BenchmarkResult], weights: Weights) -> list[Summary]:
    """All summaries of one model."""
    score = compute_score(results, weights)
    return [*expected_robustness(results), *([score] if score else []), *corruption_errors(results)]


def compute_score(results: list[BenchmarkResult], weights: Weights) -> Summary | None:
    """Weighted mean of the benchmarks' top-1 accuracies, averaged over their strengths.

    score = sum over b of weight_b * mean over strengths s of top1(b, s), divided by the sum of the weights.

    Returns:
        The score; None if a weighted benchmark is missing, or has other images.
    """
    means = []
    ids: list[str] | None = None
    for name in weights:
        scored = [(result.per_image, result.failure) for result in results if is_scored_as(result, name)]
        if not scored or any(per_image is None for per_image, _ in scored):
            return None
        outputs = [per_image for per_image, _ in scored if per_image is not None]
        ids = ids or outputs[0].ids
        if any(output.ids != ids for output in outputs):
            return None
        means.append(np.mean([output.scores.top1 for output in outputs], axis=0))
    if ids is None:
        return None
    values = np.array(list(weights.values()))
    return Summary(SCORE, SUMMARY, SCORE, ids, (values / values.sum()) @ np.stack(means))


def is_scored_as(result: BenchmarkResult, name: str) -> bool:
    """Whether a result counts for the benchmark of this name in the score."""
    if name == "corruptions":
        return result.condition == "corrupted" and not result.is_stored
    return result.name == name


def expected_robustness(results: list[BenchmarkResult]) -> list[Summary]:
    """Mean of top-1 over the radii of an attack, the clean accuracy at 0 included; for attacks with several radii.

    The radii count equally, so that only numbers over the same radii can be compared; a note states them.
    """
    clean = next((result for result in results if result.condition == "clean" and result.per_image), None)
    attacks: dict[str, list[BenchmarkResult]] = {}
    for result in results:
        if result.condition == "attacked" and result.is_own_data:
            attacks.setdefault(result.name, []).append(result)
    summaries = []
    for name, attacked in attacks.items():
        if clean is None or len(attacked) < 2:
            continue
        outputs = [result.per_image for result in (clean, *attacked) if result.per_image is not None]
        ids = outputs[0].ids
        if len(outputs) <= len(attacked) or any(output.ids != ids for output in outputs):
            continue  # one of them failed, or is on other images
        radii = ", ".join(format_strength(result.strength or 0, "attacked") for result in attacked)
        notes = (f"expected robustness over the radii 0, {radii}", *attacked[0].notes)
        values = statistics.expected_robustness(np.stack([output.scores.top1 for output in outputs]))
        summaries.append(Summary(name, AVERAGED, EXPECTED_ROBUSTNESS, ids, values, notes))
    return summaries


def group_by_model(results: list[BenchmarkResult]) -> list[tuple[EvalModel, list[BenchmarkResult]]]:
    """Models in their order, and the results of each of them."""
    groups: dict[tuple[str | None, str], list[BenchmarkResult]] = {}
    for result in results:
        groups.setdefault((result.model.checkpoint, result.model.name), []).append(result)
    return [(group[0].model, group) for group in groups.values()]
