"""Finetunes a vision transformer. `python train.py --help` says how; conf/train.yaml holds every choice."""

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from nsaug.cli.app import entry_point, instantiate, validate_config, validate_value
from nsaug.utils.errors import UserError, first_line
from nsaug.utils.types import flatten

log = logging.getLogger("nsaug.train")

KNOWN = {
    "data", "model", "method", "nullspace", "attack", "optim", "trainer", "logger",
    "name", "seed", "checkpoint", "finetune", "ema", "keep", "val_attack_batches", "mixing", "resume", "checkpoint_every_n_steps",
    "max_nonfinite_batches",
}  # fmt: skip

FREE = ("trainer.enable_progress_bar", "data.num_workers")
"""Settings of which nothing that is computed depends: a run that goes on may have others."""


@entry_point("train")
def main(cfg: DictConfig) -> None:
    """One run: refuse what cannot work, build the parts, train, leave the weights for timm."""
    check_settings(cfg)
    check_folder(cfg)

    import lightning as L
    from lightning.pytorch.callbacks import EMAWeightAveraging
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from nsaug.models import weights
    from nsaug.training import checkpointing
    from nsaug.training.callbacks import NoiseImageLogger, NoiseMonitor, Progress
    from nsaug.training.checkpointing import LastCheckpoint
    from nsaug.training.lightning_module import Finetuner, NonFiniteLoss
    from nsaug.training.loggers import finish, wandb_run_info

    folder = Path(HydraConfig.get().runtime.output_dir)
    folder, going_on = where_to_resume(cfg, folder)
    L.seed_everything(cfg.seed, workers=True, verbose=False)

    data = instantiate(cfg.data)
    data.setup("fit")
    if cfg.keep == "best" and not data.val_set:
        raise UserError("keep=best needs validation images: set data.val_fraction above 0, or keep=last")
    vit = instantiate(cfg.model, num_classes=data.num_classes, checkpoint=cfg.checkpoint)
    method = instantiate(cfg.method)
    if method.num_views > 1 and not data.augments:
        log.warning(
            "%s: all views of an image are the same, set data.crop, data.hflip or data.auto_augment", method.name
        )
    data.configure(vit.data_config, seed=cfg.seed, num_views=method.num_views)
    attack = instantiate(cfg.attack) if cfg.val_attack_batches else None
    optim, mixing = instantiate(cfg.optim), instantiate(cfg.mixing)
    finetuner = Finetuner(
        vit, method, optim, cfg.seed, attack, cfg.val_attack_batches, mixing, cfg.finetune, cfg.max_nonfinite_batches
    )
    checkpointing.check_disk_space(folder, vit)

    tracking = instantiate(cfg.logger)
    name = cfg.name or method.name
    start = weights.run_name(cfg.checkpoint) if cfg.checkpoint else None
    record = run_record(cfg, name, method.name, data.class_names, start)
    before = weights.read_metadata(folder) if going_on else {}
    if going_on:
        refuse_other_settings(before, record, folder)
    settings = OmegaConf.to_container(cfg, resolve=True)
    loggers = tracking.loggers(folder, f"{name}-{cfg.seed}", multirun_group(), settings, going_on, before.get("wandb"))
    best = best_checkpoint(folder) if cfg.keep == "best" else None
    callbacks = [LastCheckpoint(folder, cfg.checkpoint_every_n_steps), NoiseMonitor(), *([best] if best else [])]
    if cfg.ema is not None:  # buffers are copied, not averaged: some are indices
        callbacks.append(EMAWeightAveraging(decay=cfg.ema, use_buffers=False))
    if tracking.pictures:
        callbacks.append(NoiseImageLogger(folder, tracking.pictures))
    if cfg.trainer.enable_progress_bar:
        callbacks.append(Progress())
    finished = False
    try:
        plugins = [checkpointing.AtomicCheckpointIO()]
        length = run_length(cfg.trainer, method.duration_factor)
        trainer = instantiate(cfg.trainer, logger=loggers, callbacks=callbacks, plugins=plugins, **length)
        if trainer.is_global_zero:  # at once: whatever ends the run, its last.ckpt can be judged
            record["wandb"] = wandb_run_info(loggers)
            weights.save_config(folder, vit, record)
        trainer.fit(finetuner, datamodule=data, ckpt_path=going_on)
        finished = not trainer.interrupted
    except SIGTERMException:
        log.warning("stopped by SIGTERM: resume=%s goes on from %s", folder, checkpointing.LAST)
        raise SystemExit(128 + signal.SIGTERM) from None
    except NonFiniteLoss as error:
        kept = checkpointing.find_last_checkpoint(folder)
        raise UserError(f"{error} ({f'the last good checkpoint is {kept}' if kept else 'none was kept'})") from None
    except RuntimeError as error:
        if "DataLoader worker" not in str(error) or isinstance(error, UserError):
            raise
        raise UserError(
            f"a process that loads data died ({first_line(error)}): if memory ran out, set data.num_workers lower;"
            f" resume={folder} goes on"
        ) from error
    finally:
        finish(loggers, failed=not finished)
    if trainer.is_global_zero:
        # From the checkpoint, also where a run that had ended is taken up, in which nothing is averaged any more.
        kept = best.best_model_path if best and best.best_model_path else folder / checkpointing.LAST
        vit.load_state_dict(weights.read_weights(kept))
        weights.save_weights(folder, vit.model)
        log.info("%s: %s", name, described(trainer.callback_metrics))
        log.info("weights for timm, and to go on from: %s", folder)


def check_settings(cfg: DictConfig) -> None:
    """All that can be said of a configuration without touching data or weights."""
    from typing import Literal

    from nsaug.training.param_groups import Finetune
    from nsaug.utils.types import Decay, NonNegativeInt, PositiveInt

    validate_config(cfg, KNOWN)
    for group, choice in (("data", "digits"), ("model", "micro")):
        if "_target_" not in cfg[group]:
            raise UserError(f"{group}=checkpoint is for evaluate.py: name what to train, such as {group}={choice}")
    validate_value("seed", cfg.seed, NonNegativeInt)
    validate_value("keep", cfg.keep, Literal["last", "best"])
    validate_value("val_attack_batches", cfg.val_attack_batches, NonNegativeInt)
    validate_value("finetune", cfg.finetune, Finetune)
    validate_value("ema", cfg.ema, Decay | None)
    if (cfg.mixing.mixup or cfg.mixing.cutmix) and cfg.data.batch_size % 2:
        raise UserError(f"mixup and cutmix pair images: data.batch_size={cfg.data.batch_size} should be even")
    validate_value("name", cfg.name, str | None)
    validate_value("resume", cfg.resume, bool | str | None)
    validate_value("checkpoint_every_n_steps", cfg.checkpoint_every_n_steps, PositiveInt | None)
    validate_value("max_nonfinite_batches", cfg.max_nonfinite_batches, NonNegativeInt)
    validate_value("checkpoint", cfg.checkpoint, str | None)


def check_folder(cfg: DictConfig) -> None:
    """Refuses processes that something else than Lightning starts, in folders of their own: one each, named by time."""
    hydra = HydraConfig.get()
    apart = cfg.trainer.num_nodes > 1 or "TORCHELASTIC_RUN_ID" in os.environ
    named = any(override.startswith(("hydra.run.dir=", "hydra.sweep.dir=")) for override in hydra.overrides.hydra)
    if apart and not named:
        raise UserError(
            "each process would make a folder of its own: add hydra.run.dir=outputs/train/NAME, the same for all, on a"
            " disk that they share"
        )


def run_record(
    cfg: DictConfig, name: str, method: str, class_names: list[str], start: str | None = None
) -> dict[str, Any]:
    """What `config.json` tells of the run: enough to judge its weights on its data, and to group runs by settings."""
    data = OmegaConf.to_container(cfg.data, resolve=True)
    assert isinstance(data, dict)
    if "root" in data:
        data["root"] = str(Path(data["root"]).expanduser().absolute())
    told = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(told, dict)
    groups = ("data", "model", "nullspace", "method", "optim", "mixing", "finetune", "ema", "keep", "trainer")
    settings = {group: told[group] for group in groups} | {"start": start}
    return {
        "name": name,
        "method": method,
        "seed": cfg.seed,
        "data": data,
        "class_names": class_names,
        "settings": settings,
    }


def run_length(trainer: DictConfig, duration_factor: float) -> dict[str, int]:
    """Epochs and steps of a method that has more of them than it was told; -1 and null stay what they are."""
    told = {key: trainer[key] for key in ("max_epochs", "max_steps") if trainer[key] and trainer[key] > 0}
    return {key: max(1, round(duration_factor * count)) for key, count in told.items()}


def where_to_resume(cfg: DictConfig, folder: Path) -> tuple[Path, Path | None]:
    """The folder of the run that is to go on, and the checkpoint that it goes on from; this run's own and None if none.

    `resume=true` means the run in this folder, so that one command both starts it and takes it up; `resume=PATH` the
    run in that folder, or the one that left that checkpoint.
    """
    from nsaug.training import checkpointing

    if not cfg.resume:
        return folder, None
    if cfg.resume is True:
        found = checkpointing.find_last_checkpoint(folder)
        if found is None:
            log.info("nothing to resume in %s: the run starts", folder)
        return folder, found
    path = Path(cfg.resume).expanduser()
    if path.is_file():
        if not checkpointing.is_valid(path):
            raise UserError(f"resume={path} is damaged: type resume={path.parent}, which knows the one before")
        return path.parent, path
    found = checkpointing.find_last_checkpoint(path) if path.is_dir() else None
    if found is None:
        raise UserError(f"resume={path} holds no {checkpointing.LAST}: name a run's output folder")
    return path, found


def refuse_other_settings(before: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    """Raises UserError where a run that goes on is told something else than when it started."""
    kept = ("settings", "seed", "class_names")
    told = ({key: run[key] for key in kept if key in run} for run in (before, now))
    for key, theirs, ours in other_settings(*told):
        raise UserError(
            f"resume={folder}: that run has {key.removeprefix('settings.')}={theirs}, this command says {ours}: type"
            " the command that started it"
        )


def other_settings(before: dict[str, Any], now: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Each setting on which something that is computed depends and that two runs do not share; that of both."""
    theirs, ours = flatten(before), flatten(now)
    for key in {**ours, **theirs}:
        if theirs.get(key) != ours.get(key) and not key.endswith(FREE):
            yield key, theirs.get(key), ours.get(key)


def best_checkpoint(folder: Path) -> Any:
    """best.ckpt, where it is what the run shall leave."""
    from lightning.pytorch.callbacks import ModelCheckpoint

    return ModelCheckpoint(
        filename="best", monitor="val/top1", mode="max", dirpath=folder,
        enable_version_counter=False, auto_insert_metric_name=False,
    )  # fmt: skip


def multirun_group() -> str | None:
    """The name that the runs of one multirun share."""
    hydra = HydraConfig.get()
    return Path(hydra.sweep.dir).name if hydra.mode == RunMode.MULTIRUN else None


def described(metrics: Any) -> str:
    """The last line of a run: validation accuracy, and how far the noise got."""
    words = []
    for key, text in (
        ("val/top1", "val top-1"),
        ("val/adv_top1", "attacked"),
        ("train/converged", "noise below eps"),
    ):
        if key in metrics:
            words.append(f"{text} {100 * float(metrics[key]):.1f} %")
    return ", ".join(words) or "no validation"


if __name__ == "__main__":
    main()
