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

from nsaug.config import build, check, check_value, entry_point
from nsaug.settings import NsaugError, first_line, flat

log = logging.getLogger("nsaug.train")

KNOWN = {
    "data", "model", "method", "nullspace", "attack", "optim", "trainer", "logger",
    "name", "seed", "checkpoint", "finetune", "ema", "keep", "attacked_batches", "mixing", "resume", "save_every",
    "skip_nonfinite",
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

    from nsaug import checkpoints
    from nsaug.finetuner import Finetuner, NonFiniteLoss
    from nsaug.lasting import LastCheckpoint
    from nsaug.tracking import NoiseWatch, Pictures, Progress, finish, whereabouts

    folder = Path(HydraConfig.get().runtime.output_dir)
    folder, going_on = where_to_resume(cfg, folder)
    L.seed_everything(cfg.seed, workers=True, verbose=False)

    data = build(cfg.data)
    data.setup("fit")
    if cfg.keep == "best" and not data.val_set:
        raise NsaugError("keep=best needs validation images: set data.holdout above 0, or keep=last")
    vit = build(cfg.model, num_classes=data.num_classes, checkpoint=cfg.checkpoint)
    method = build(cfg.method)
    data.views, data.seed = method.views, cfg.seed
    if method.views > 1 and not data.augments:
        log.warning(
            "%s: all views of an image are the same, set data.crop, data.hflip or data.auto_augment", method.name
        )
    data.prepare_for(vit.data_config)
    attack = build(cfg.attack) if cfg.attacked_batches else None
    optim, mixing = build(cfg.optim), build(cfg.mixing)
    finetuner = Finetuner(
        vit, method, optim, cfg.seed, attack, cfg.attacked_batches, mixing, cfg.finetune, cfg.skip_nonfinite
    )
    checkpoints.check_room(folder, vit)

    tracking = build(cfg.logger)
    name = cfg.name or method.name
    start = checkpoints.name_of(cfg.checkpoint) if cfg.checkpoint else None
    record = run_record(cfg, name, method.name, data.class_names, start)
    before = checkpoints.read_record(folder) if going_on else {}
    if going_on:
        refuse_other_settings(before, record, folder)
    settings = OmegaConf.to_container(cfg, resolve=True)
    loggers = tracking.loggers(folder, f"{name}-{cfg.seed}", multirun_group(), settings, going_on, before.get("wandb"))
    best = best_checkpoint(folder) if cfg.keep == "best" else None
    callbacks = [LastCheckpoint(folder, cfg.save_every), NoiseWatch(), *([best] if best else [])]
    if cfg.ema is not None:  # buffers are copied, not averaged: some are indices
        callbacks.append(EMAWeightAveraging(decay=cfg.ema, use_buffers=False))
    if tracking.pictures:
        callbacks.append(Pictures(folder, tracking.pictures))
    if cfg.trainer.enable_progress_bar:
        callbacks.append(Progress())
    finished = False
    try:
        plugins = [checkpoints.WholeCheckpointIO()]
        length = run_length(cfg.trainer, method.longer)
        trainer = build(cfg.trainer, logger=loggers, callbacks=callbacks, plugins=plugins, **length)
        if trainer.is_global_zero:  # at once: whatever ends the run, its last.ckpt can be judged
            record["wandb"] = whereabouts(loggers)
            checkpoints.describe(folder, vit.model, vit.model_args, record)
        trainer.fit(finetuner, datamodule=data, ckpt_path=going_on)
        finished = not trainer.interrupted
    except SIGTERMException:
        log.warning("stopped by SIGTERM: resume=%s goes on from %s", folder, checkpoints.LAST)
        raise SystemExit(128 + signal.SIGTERM) from None
    except NonFiniteLoss as error:
        kept = checkpoints.resumable(folder)
        raise NsaugError(f"{error} ({f'the last good checkpoint is {kept}' if kept else 'none was kept'})") from None
    except RuntimeError as error:
        if "DataLoader worker" not in str(error) or isinstance(error, NsaugError):
            raise
        raise NsaugError(
            f"a process that loads data died ({first_line(error)}): if memory ran out, set data.num_workers lower;"
            f" resume={folder} goes on"
        ) from error
    finally:
        finish(loggers, failed=not finished)
    if trainer.is_global_zero:
        # From the checkpoint, also where a run that had ended is taken up, in which nothing is averaged any more.
        kept = best.best_model_path if best and best.best_model_path else folder / checkpoints.LAST
        vit.load_state_dict(checkpoints.read_weights(kept))
        checkpoints.export(folder, vit.model)
        log.info("%s: %s", name, described(trainer.callback_metrics))
        log.info("weights for timm, and to go on from: %s", folder)


def check_settings(cfg: DictConfig) -> None:
    """All that can be said of a configuration without touching data or weights."""
    from typing import Literal

    from nsaug.layers import Finetune
    from nsaug.settings import Count, Decay, PositiveCount

    check(cfg, KNOWN)
    for group, choice in (("data", "digits"), ("model", "micro")):
        if "_target_" not in cfg[group]:
            raise NsaugError(f"{group}=checkpoint is for evaluate.py: name what to train, such as {group}={choice}")
    check_value("seed", cfg.seed, Count)
    check_value("keep", cfg.keep, Literal["last", "best"])
    check_value("attacked_batches", cfg.attacked_batches, Count)
    check_value("finetune", cfg.finetune, Finetune)
    check_value("ema", cfg.ema, Decay | None)
    if (cfg.mixing.mixup or cfg.mixing.cutmix) and cfg.data.batch_size % 2:
        raise NsaugError(f"mixup and cutmix pair images: data.batch_size={cfg.data.batch_size} should be even")
    check_value("name", cfg.name, str | None)
    check_value("resume", cfg.resume, bool | str | None)
    check_value("save_every", cfg.save_every, PositiveCount | None)
    check_value("skip_nonfinite", cfg.skip_nonfinite, Count)
    check_value("checkpoint", cfg.checkpoint, str | None)


def check_folder(cfg: DictConfig) -> None:
    """Refuses processes that something else than Lightning starts, in folders of their own: one each, named by time."""
    hydra = HydraConfig.get()
    apart = cfg.trainer.num_nodes > 1 or "TORCHELASTIC_RUN_ID" in os.environ
    named = any(override.startswith(("hydra.run.dir=", "hydra.sweep.dir=")) for override in hydra.overrides.hydra)
    if apart and not named:
        raise NsaugError(
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


def run_length(trainer: DictConfig, longer: float) -> dict[str, int]:
    """Epochs and steps of a method that has more of them than it was told; -1 and null stay what they are."""
    told = {key: trainer[key] for key in ("max_epochs", "max_steps") if trainer[key] and trainer[key] > 0}
    return {key: max(1, round(longer * count)) for key, count in told.items()}


def where_to_resume(cfg: DictConfig, folder: Path) -> tuple[Path, Path | None]:
    """The folder of the run that is to go on, and the checkpoint that it goes on from; this run's own and None if none.

    `resume=true` means the run in this folder, so that one command both starts it and takes it up; `resume=PATH` the
    run in that folder, or the one that left that checkpoint.
    """
    from nsaug import checkpoints

    if not cfg.resume:
        return folder, None
    if cfg.resume is True:
        found = checkpoints.resumable(folder)
        if found is None:
            log.info("nothing to resume in %s: the run starts", folder)
        return folder, found
    path = Path(cfg.resume).expanduser()
    if path.is_file():
        if not checkpoints.is_whole(path):
            raise NsaugError(f"resume={path} is damaged: type resume={path.parent}, which knows the one before")
        return path.parent, path
    found = checkpoints.resumable(path) if path.is_dir() else None
    if found is None:
        raise NsaugError(f"resume={path} holds no {checkpoints.LAST}: name a run's output folder")
    return path, found


def refuse_other_settings(before: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    """Raises NsaugError where a run that goes on is told something else than when it started."""
    kept = ("settings", "seed", "class_names")
    told = ({key: run[key] for key in kept if key in run} for run in (before, now))
    for key, theirs, ours in other_settings(*told):
        raise NsaugError(
            f"resume={folder}: that run has {key.removeprefix('settings.')}={theirs}, this command says {ours}: type"
            " the command that started it"
        )


def other_settings(before: dict[str, Any], now: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Each setting on which something that is computed depends and that two runs do not share; that of both."""
    theirs, ours = flat(before), flat(now)
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
        ("val/attacked_top1", "attacked"),
        ("train/reached", "noise below eps"),
    ):
        if key in metrics:
            words.append(f"{text} {100 * float(metrics[key]):.1f} %")
    return ", ".join(words) or "no validation"


if __name__ == "__main__":
    main()
