"""results.npz: all results of an evaluation, to compare them later without the checkpoints.

The file holds JSON and arrays without pickle. What is read is checked against types before it is used.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, NonNegativeInt

from nsaug.evaluation.models import EvalModel, disambiguate
from nsaug.evaluation.reporting.plots import thumbnail
from nsaug.evaluation.reporting.sections import sample_results
from nsaug.evaluation.reporting.summaries import Weights, is_scored_as
from nsaug.evaluation.results import AnalysisResult, BenchmarkResult, PerImageResult
from nsaug.evaluation.serialization import DAMAGE, OutputValues, decode, encode
from nsaug.utils.errors import UserError
from nsaug.utils.files import atomic_write, is_dir, is_file

log = logging.getLogger(__name__)

FILE = "results.npz"
FORMAT = 1
"""Raise it whenever the content of the file changes."""


class SavedResults(NamedTuple):
    """Results of an evaluation, and the weights of its score."""

    results: list[BenchmarkResult]
    weights: dict[str, float]


class _Wandb(BaseModel):
    id: str
    project: str
    entity: str | None
    online: bool


class _Metadata(BaseModel):
    """What a training run recorded; other keys are kept as they are."""

    model_config = ConfigDict(extra="allow")

    name: str | None = None
    method: str | None = None
    seed: int | None = None
    settings: dict[str, Any] = {}
    wandb: _Wandb | None = None


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")

    checkpoint: str | None
    name: str
    metadata: _Metadata


class _Result(BaseModel):
    """One result; `model`, `ids` and `class_names` are indices into the lists of `_Content`."""

    model_config = ConfigDict(extra="forbid")

    model: NonNegativeInt
    name: str
    strength: float | None
    condition: str
    failure: str | None
    corruption: str | None
    is_own_data: bool
    is_stored: bool
    weights: str
    class_names: NonNegativeInt
    ids: NonNegativeInt | None
    output: OutputValues | None


class _Content(BaseModel):
    """The JSON part of the file."""

    model_config = ConfigDict(extra="forbid")

    format: int
    weights: dict[str, float]
    models: list[_Model]
    ids: list[list[str]]
    class_names: list[list[str]]
    results: list[_Result]


def save_results(results: Sequence[BenchmarkResult], weights: Weights, folder: Path) -> None:
    """Write results.npz into a folder; of the sample images those of the report only, reduced."""
    shown = {id(result) for result in sample_results(list(results))}
    models: dict[tuple[str | None, str], int] = {}
    ids: dict[tuple[str, ...], int] = {}
    class_names: dict[tuple[str, ...], int] = {}
    entries: list[dict[str, Any]] = []
    model_values: list[dict[str, Any]] = []
    arrays: dict[str, Any] = {}
    for number, result in enumerate(results):
        model = result.model
        key = model.checkpoint, model.name
        if key not in models:
            model_values.append({"checkpoint": model.checkpoint, "name": model.name, "metadata": model.metadata})
        output, values = result.output, None
        if output is not None:
            values, output_arrays = encode(_without_large_arrays(output, id(result) in shown))
            arrays |= {f"{number}/{name}": array for name, array in output_arrays.items()}
        entries.append(
            {name: getattr(result, name) for name in _Result.model_fields if hasattr(result, name)}
            | {"model": models.setdefault(key, len(models)), "output": values}
            | {"class_names": class_names.setdefault(tuple(result.class_names), len(class_names))}
            | {"ids": None if output is None else ids.setdefault(tuple(output.ids), len(ids))}
        )
    content = {"format": FORMAT, "weights": dict(weights), "models": model_values, "results": entries}
    content |= {"ids": list(ids), "class_names": list(class_names)}
    text = np.frombuffer(json.dumps(content).encode(), np.uint8)
    with atomic_write(folder / FILE) as tmp_path, open(tmp_path, "wb") as file:
        np.savez_compressed(file, content=text, **arrays)


def _without_large_arrays(
    output: PerImageResult | AnalysisResult, keep_samples: bool
) -> PerImageResult | AnalysisResult:
    if isinstance(output, AnalysisResult):
        return replace(output, noises=np.zeros((0, 0, 0), np.float32))
    if not keep_samples or not len(output.sample_images):
        return replace(output, sample_images=np.zeros((0, 1, 1, 3), np.uint8))
    return replace(output, sample_images=np.stack([np.asarray(thumbnail(image)) for image in output.sample_images]))


def load_results(folder: str | Path) -> SavedResults:
    """Read results.npz of an evaluation's output folder.

    Raises:
        UserError: there is none, or it is damaged or of another version.
    """
    path = Path(folder) / FILE
    if not is_dir(folder):
        raise UserError(f"{folder} does not exist: name an output folder of evaluate.py")
    if not is_file(path):
        raise UserError(f"{folder} has no {FILE}: name an output folder of an evaluation that finished")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        values = json.loads(arrays.pop("content").astype(np.uint8).tobytes())
        version = values["format"]
        if version == FORMAT:
            return _build(_Content.model_validate(values), arrays)
    except (OSError, *DAMAGE) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}): evaluate these models again") from error
    raise UserError(f"{path} has format {version!r}, this version of nsaug reads {FORMAT}: evaluate these models again")


def _build(content: _Content, arrays: Mapping[str, np.ndarray]) -> SavedResults:
    models = [
        EvalModel(model.checkpoint, None, model.metadata.model_dump(exclude_unset=True), model.name)
        for model in content.models
    ]
    by_result: dict[str, dict[str, np.ndarray]] = {}
    for key, array in arrays.items():
        prefix, _, name = key.partition("/")
        by_result.setdefault(prefix, {})[name] = array
    results = []
    for number, entry in enumerate(content.results):
        output = None
        if entry.output is not None and entry.ids is not None:
            output = decode(entry.output, content.ids[entry.ids], by_result[str(number)])
        results.append(
            BenchmarkResult(
                models[entry.model],
                entry.name,
                entry.strength,
                entry.condition,
                output,
                failure=entry.failure,
                corruption=entry.corruption,
                is_own_data=entry.is_own_data,
                is_stored=entry.is_stored,
                class_names=content.class_names[entry.class_names],
                weights=entry.weights,
            )
        )
    return SavedResults(results, content.weights)


def merge_results(evaluations: Sequence[Sequence[BenchmarkResult]]) -> list[BenchmarkResult]:
    """Join the results of several evaluations; models of one name are renamed as in one evaluation.

    A model that several evaluations have counts once, unless it has other images in one of them.
    """
    merged: list[tuple[EvalModel, dict[Any, BenchmarkResult]]] = []
    for results in evaluations:
        for model, own in _by_model(results):
            same = next((known for other, known in merged if _is_same(model, own, other, known)), None)
            if same is None:
                merged.append((replace(model, name=model.metadata.get("name") or model.name), own))
            else:
                same.update(own)
    models = _make_distinct(disambiguate([model for model, _ in merged]))
    return [
        replace(result, model=model)
        for model, (_, own) in zip(models, merged, strict=True)
        for result in own.values()
    ]  # fmt: skip


def _by_model(results: Sequence[BenchmarkResult]) -> list[tuple[EvalModel, dict[Any, BenchmarkResult]]]:
    """Results of every model by benchmark and strength."""
    groups: dict[tuple[str | None, str], tuple[EvalModel, dict[Any, BenchmarkResult]]] = {}
    for result in results:
        key = result.model.checkpoint, result.model.name
        _, own = groups.setdefault(key, (result.model, {}))
        own[result.name, result.strength] = result
    return list(groups.values())


def _is_same(
    model: EvalModel, own: Mapping[Any, BenchmarkResult], other: EvalModel, known: Mapping[Any, BenchmarkResult]
) -> bool:
    """Whether two models have the same weights and settings, and the same images wherever both have a result."""
    weights = [{result.weights for result in results.values()} for results in (own, known)]
    return (
        weights[0] == weights[1] != {""}
        and model.metadata == other.metadata
        and all(_ids(own[key]) == _ids(known[key]) for key in own.keys() & known.keys())
    )


def _ids(result: BenchmarkResult) -> list[str] | None:
    return result.output.ids if result.output else None


def _make_distinct(models: list[EvalModel]) -> list[EvalModel]:
    """Number models that still share both checkpoint and name, such as one model on other images."""
    counts: dict[tuple[str | None, str], int] = {}
    distinct = []
    for model in models:
        key = model.checkpoint, model.name
        counts[key] = counts.get(key, 0) + 1
        distinct.append(model if counts[key] == 1 else replace(model, name=f"{model.name} ({counts[key]})"))
    return distinct


def compare(folders: Sequence[str | Path]) -> SavedResults:
    """Read and join the results of several evaluations.

    The weights of the score are kept if all evaluations have the same ones, at the same strengths.

    Raises:
        UserError: fewer than two folders, a folder without readable results, or no benchmark in common.
    """
    if len(folders) < 2:
        raise UserError("compare: name two or more output folders of evaluate.py, as [a,b]")
    saved = [load_results(folder) for folder in folders]
    keys = [_keys(evaluation.results) for evaluation in saved]
    for folder, own in zip(folders, keys, strict=True):
        if not any(own & other for other in keys if other is not own):
            raise UserError(f"{folder} has no benchmark in common with the others: compare evaluations of one suite")
    weights = saved[0].weights
    scored = [{key for name in weights for key in _keys(run.results, name)} for run in saved]
    if any(run.weights != weights for run in saved) or any(other != scored[0] for other in scored):
        log.warning("the evaluations have different scores: the comparison has none")
        weights = {}
    return SavedResults(merge_results([evaluation.results for evaluation in saved]), weights)


def _keys(results: Sequence[BenchmarkResult], scored_as: str | None = None) -> set[tuple[str, float | None]]:
    """Benchmarks and strengths that have a result."""
    return {
        (result.name, result.strength)
        for result in results
        if result.output is not None and (scored_as is None or is_scored_as(result, scored_as))
    }
