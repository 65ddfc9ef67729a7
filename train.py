"""Finetunes a vision transformer. `python train.py --help` says how; conf/train.yaml holds every choice."""

import logging
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from nsaug.config import build, check, check_value, entry_point
from nsaug.settings import NsaugError

log = logging.getLogger("nsaug.train")

KNOWN = {
    "data", "model", "method", "nullspace", "attack", "optim", "trainer", "logger",
    "name", "seed", "checkpoint", "finetune", "ema", "keep", "attacked_batches", "mixing",
}  # fmt: skip


@entry_point("train")
def main(cfg: DictConfig) -> None:
    """One run: refuse what cannot work, build the parts, train, leave the weights for timm."""
    check_settings(cfg)

    import lightning as L
    from lightning.pytorch.callbacks import EMAWeightAveraging

    from nsaug import checkpoints
    from nsaug.finetuner import Finetuner
    from nsaug.tracking import NoiseWatch, Pictures, Progress, finish, whereabouts

    folder = Path(HydraConfig.get().runtime.output_dir)
    L.seed_everything(cfg.seed, workers=True, verbose=False)

    data = build(cfg.data)
    data.setup("fit")
    if cfg.keep == "best" and not data.val_set:
        raise NsaugError("keep=best needs validation images: set data.holdout above 0, or keep=last")
    vit = build(cfg.model, num_classes=data.num_classes, checkpoint=cfg.checkpoint)
    method = build(cfg.method)
    data.views = method.views
    if method.views > 1 and not data.augments:
        log.warning(
            "%s: all views of an image are the same, set data.crop, data.hflip or data.auto_augment", method.name
        )
    data.prepare_for(vit.data_config)
    attack = build(cfg.attack) if cfg.attacked_batches else None
    optim, mixing = build(cfg.optim), build(cfg.mixing)
    finetuner = Finetuner(vit, method, optim, cfg.seed, attack, cfg.attacked_batches, mixing, cfg.finetune)

    tracking = build(cfg.logger)
    name = cfg.name or method.name
    start = checkpoints.name_of(cfg.checkpoint) if cfg.checkpoint else None
    record = run_record(cfg, name, method.name, data.class_names, start)
    settings = OmegaConf.to_container(cfg, resolve=True)
    loggers = tracking.loggers(folder, f"{name}-{cfg.seed}", multirun_group(), settings)
    last, best = checkpoint_callbacks(folder, cfg.keep)
    callbacks = [last, NoiseWatch(), *([best] if best else [])]
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
        trainer.fit(finetuner, datamodule=data)
        finished = not trainer.interrupted
    finally:
        finish(loggers, failed=not finished)
    if trainer.is_global_zero:
        if best and best.best_model_path:
            vit.load_state_dict(checkpoints.read_weights(best.best_model_path))
        checkpoints.export(folder, vit.model)
        log.info("%s: %s", name, described(trainer.callback_metrics))
        log.info("weights for timm, and to go on from: %s", folder)


def check_settings(cfg: DictConfig) -> None:
    """All that can be said of a configuration without touching data or weights."""
    from typing import Literal

    from nsaug.layers import Finetune
    from nsaug.settings import Count, Decay

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
    check_value("checkpoint", cfg.checkpoint, str | None)


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
    groups = ("data", "model", "method", "nullspace", "optim", "mixing", "finetune", "ema", "keep", "trainer")
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


def checkpoint_callbacks(folder: Path, keep: str) -> tuple[Any, Any]:
    """last.ckpt after every epoch, and best.ckpt where it is what the run shall leave."""
    from lightning.pytorch.callbacks import ModelCheckpoint

    options: dict[str, Any] = {
        "dirpath": folder,
        "enable_version_counter": False,
        "auto_insert_metric_name": False,
    }
    last = ModelCheckpoint(filename="last", save_on_train_epoch_end=True, **options)
    best = ModelCheckpoint(filename="best", monitor="val/top1", mode="max", **options) if keep == "best" else None
    return last, best


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
