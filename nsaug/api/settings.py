"""Settings by their names on the command line, composed from conf/ and checked."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nsaug.cli import train
from nsaug.cli.app import check_groups, validate_config, validate_value
from nsaug.cli.compose import compose, to_overrides
from nsaug.cli.errors import format_error
from nsaug.methods import Method
from nsaug.utils.errors import UserError, unknown_name
from nsaug.utils.types import PositiveInt, Seed, Text

TRAINING_GROUPS = ("method", "nullspace", "attack", "optim", "trainer", "mixup")
TRAINING_KEYS = (*TRAINING_GROUPS, "trainable", "ema", "val_attack_batches", "max_nonfinite_batches")
EVALUATION_KEYS = ("suite", "batch_size", "cache")
ONE_DEVICE = "python train.py for several devices"
ARGUMENTS = {  # settings that are not given as settings, and what to type instead
    "method": "method=...", "suite": "suite=...", "seed": "seed=...", "trainer.max_epochs": "epochs=...",
    "trainer.accelerator": "device=...", "trainer.devices": "device=...", "trainer": "its settings, as trainer.NAME",
    "trainer.strategy": ONE_DEVICE, "trainer.num_nodes": ONE_DEVICE,
}  # fmt: skip


def training_config(method: str | Method, epochs: int, settings: Mapping[str, Any], seed: int) -> DictConfig:
    """The checked configuration of `finetune`."""
    validate_value("epochs", epochs, PositiveInt)
    validate_value("seed", seed, Seed)
    _check_names("nsaug.finetune", settings, TRAINING_KEYS)
    if isinstance(method, Method):
        for name in settings:
            if name.lstrip("+").startswith(("method.", "nullspace")):
                raise UserError(f"settings: {name} has no effect, because method is an object: give it to the object")
    elif not isinstance(method, str):
        raise UserError(f"method is a {type(method).__name__}: pass a name, such as 'nullspace', or a Method")
    arguments = {"method": method if isinstance(method, str) else "clean", "trainer.max_epochs": epochs, "seed": seed}
    # model=timm: the default model would come with a learning rate for training from scratch.
    cfg = _compose("train", ["model=timm", *to_overrides(arguments), *to_overrides(settings)], TRAINING_KEYS)
    validate_config(cfg, {*TRAINING_KEYS, "seed"})
    check_groups(cfg, TRAINING_GROUPS)
    train.check_values(cfg)
    train.check_trainer(cfg.trainer)
    return cfg


def evaluation_config(suite: str | Mapping[str, Any], settings: Mapping[str, Any], seed: int) -> DictConfig:
    """The checked configuration of `evaluate`; `cache` is None unless it is set."""
    validate_value("seed", seed, Seed)
    _check_names("nsaug.evaluate", settings, EVALUATION_KEYS)
    if not isinstance(suite, str | Mapping):
        raise UserError(f"suite is a {type(suite).__name__}: pass a name, such as 'quick', or a dict")
    arguments = {"suite": suite if isinstance(suite, str) else "clean", "seed": seed, "cache": None}
    cfg = _compose("evaluate", [*to_overrides(arguments), *to_overrides(settings)], EVALUATION_KEYS)
    check_groups(cfg, ("suite",))
    validate_value("batch_size", cfg.batch_size, PositiveInt, is_converted=False)
    validate_value("cache", cfg.cache, Text | None, is_converted=False)
    return cfg


def _check_names(function: str, settings: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raise UserError for names of settings that a function does not have, or has as arguments."""
    if not isinstance(settings, Mapping):
        raise UserError(f'settings is a {type(settings).__name__}: pass a dict, such as {{"optim.lr": 3e-5}}')
    for name in settings:
        key = str(name).lstrip("+")
        if key in ARGUMENTS:
            raise UserError(f"settings: {key} is not a setting of {function}: type {ARGUMENTS[key]}")
        if key.partition(".")[0] not in known:
            raise UserError(f"settings of {function}: {unknown_name('', key, known)}")


def _compose(config_name: str, overrides: list[str], keys: Iterable[str]) -> DictConfig:
    """Compose a configuration, and keep only the seed and these keys of it."""
    try:
        return OmegaConf.masked_copy(compose(config_name, overrides), ["seed", *keys])
    except Exception as error:
        raise UserError(format_error(error, config_name, overrides)) from error


@contextmanager
def value_errors() -> Iterator[None]:
    """Turn nsaug's own errors into a ValueError."""
    try:
        yield
    except UserError as error:
        raise ValueError(str(error)) from None
