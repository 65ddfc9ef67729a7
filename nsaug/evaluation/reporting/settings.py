"""Recorded training settings of the evaluated runs: what varies between them, and which runs form a sweep."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from nsaug.evaluation.models import DUPLICATED_KEYS, EvalModel
from nsaug.utils.types import flatten

EPS = "nullspace.eps"
"""The setting that is shown as ε, in the column `eps`."""


class Sweep(NamedTuple):
    """Runs of one method that differ in one setting only, besides the seed.

    Attributes:
        method: their method.
        key: the setting.
        values: its values by the names of the runs.
    """

    method: str
    key: str
    values: dict[str, Any]

    @property
    def is_numeric(self) -> bool:
        return all(isinstance(value, int | float) and not isinstance(value, bool) for value in self.values.values())

    @property
    def title(self) -> str:
        return setting_title(self.key)


def setting_title(key: str) -> str:
    """Name of a setting in tables and plots."""
    return "ε" if key in (EPS, "eps") else key


def flat_settings(model: EvalModel) -> dict[str, Any]:
    """Settings of a model's training run by dotted keys, without those that repeat others; empty for other weights."""
    settings = flatten(model.metadata.get("settings") or {})
    return {key: value for key, value in settings.items() if not DUPLICATED_KEYS.match(key)}


def varying_settings(models: Sequence[EvalModel]) -> list[str]:
    """Settings that differ between runs.

    Those of the method count only if they differ within a method. ε has a column of its own.
    """
    everywhere = _differing(models)
    within = {key for runs in _by_method(models).values() for key in _differing(runs)}
    return [key for key in everywhere if key != EPS and (key in within or not key.startswith("method."))]


def find_sweeps(models: Sequence[EvalModel]) -> list[Sweep]:
    """Methods of which several runs differ in exactly one setting."""
    sweeps = []
    for method, runs in _by_method(models).items():
        keys = _differing(runs)
        if len(keys) == 1:
            values = {model.name: flat_settings(model).get(keys[0]) for model in runs}
            sweeps.append(Sweep(method, keys[0], values))
    return sweeps


def setting_columns(model: EvalModel, varying: Sequence[str]) -> dict[str, Any]:
    """Cells of a model in the columns `eps` (for methods with nullspace noise) and of the varying settings."""
    settings = flat_settings(model)
    eps = settings.get(EPS) if "nullspace" in str(model.metadata.get("method")) else None
    return {"eps": eps} | {key: settings.get(key) for key in varying}


def distinct_models(models: Sequence[EvalModel]) -> list[EvalModel]:
    """Models without repetitions, in their order."""
    return list({(model.checkpoint, model.name): model for model in models}.values())


def _by_method(models: Sequence[EvalModel]) -> dict[str, list[EvalModel]]:
    by_method: dict[str, list[EvalModel]] = {}
    for model in models:
        if method := model.metadata.get("method"):
            by_method.setdefault(str(method), []).append(model)
    return by_method


def _differing(models: Sequence[EvalModel]) -> list[str]:
    """Keys with several values among the models that have them."""
    values: dict[str, set[Any]] = {}
    for model in models:
        for key, value in flat_settings(model).items():
            values.setdefault(key, set()).add(value)
    return [key for key, distinct in values.items() if len(distinct) > 1]
