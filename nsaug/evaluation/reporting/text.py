"""Text that any output format can show: names, notes and messages may come from a stranger's files."""

import dataclasses
from typing import Any

from nsaug.evaluation.models import EvalModel
from nsaug.evaluation.results import AnalysisResult, BenchmarkResult, PerImageResult
from nsaug.utils.text import printable

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def printable_results(results: list[BenchmarkResult]) -> list[BenchmarkResult]:
    """The same results with all of their names, notes and messages printable."""
    models: dict[int, EvalModel] = {}
    return [_printable_result(result, models) for result in results]


def _printable_result(result: BenchmarkResult, models: dict[int, EvalModel]) -> BenchmarkResult:
    if id(result.model) not in models:
        models[id(result.model)] = _printable_model(result.model)
    return dataclasses.replace(
        result,
        model=models[id(result.model)],
        name=printable(result.name),
        output=result.output and _printable_output(result.output),
        failure=result.failure and printable(result.failure),
        class_names=[printable(name) for name in result.class_names],
    )


def _printable_output(output: PerImageResult | AnalysisResult) -> PerImageResult | AnalysisResult:
    notes = tuple(map(printable, output.notes))
    if isinstance(output, PerImageResult):
        return dataclasses.replace(output, notes=notes)
    measurements = [
        item._replace(condition=printable(item.condition), metric=printable(item.metric))
        for item in output.measurements
    ]
    titles = list(map(printable, output.titles))
    return dataclasses.replace(output, notes=notes, measurements=measurements, titles=titles)


def _printable_model(model: EvalModel) -> EvalModel:
    checkpoint = model.checkpoint and printable(model.checkpoint)
    metadata = _printable_values(model.metadata)
    return dataclasses.replace(model, checkpoint=checkpoint, name=printable(model.name), metadata=metadata)


def _printable_values(value: Any) -> Any:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {_printable_values(key): _printable_values(item) for key, item in value.items()}
    return [_printable_values(item) for item in value] if isinstance(value, list | tuple) else value


def csv_cell(value: Any) -> Any:
    """A cell that a spreadsheet does not run as a formula: such text gets a leading apostrophe; numbers are kept."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_STARTS) else value


def shorten(text: str, length: int = 40) -> str:
    """Text of limited length, for plots; its middle is left out."""
    half = (length - 1) // 2
    return text if len(text) <= length else f"{text[:half]}…{text[-half:]}"
