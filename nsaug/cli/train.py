"""Finetune a vision transformer: `python train.py --help`. conf/train.yaml lists the settings."""

import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from nsaug.cli.app import check_groups, entry_point, instantiate, validate_config, validate_value
from nsaug.cli.faults import Interrupted, one_line_faults
from nsaug.cli.recorded import insert_recorded_settings
from nsaug.cli.sweeps import varying_settings
from nsaug.utils.errors import UserError, as_setting, with_type
from nsaug.utils.files import is_file, lock_folder
from nsaug.utils.processes import check_num_nodes, check_num_processes
from nsaug.utils.text import run_title

if TYPE_CHECKING:
    from nsaug.data import ImageDataModule
    from nsaug.methods import Method
    from nsaug.models.noisy_vit import NoisyViT
    from nsaug.training.lightning_module import Finetuner

log = logging.getLogger("nsaug.train")

GROUPS = ("data", "model", "method", "nullspace", "attack", "optim", "trainer", "logger", "mixup")
FSDP = "nsaug.training.fsdp.FSDP"
FSDP_PRECISIONS = ("32-true", "bf16-mixed", "bf16-true")
TOP_LEVEL_KEYS = {
    *GROUPS, "name", "seed", "checkpoint", "trainable", "ema", "save", "val_attack_batches", "resume",
    "checkpoint_every_n_steps", "max_nonfinite_batches",
}  # fmt: skip


@entry_point("train", partial(insert_recorded_settings, values=TOP_LEVEL_KEYS - {*GROUPS}))
def main(cfg: DictConfig) -> float | None:
    """Check the settings, build data, model and method, train, and export the weights for timm.

    Returns:
        What a search maximizes (hydra/sweeper=nullspace): `val/adv_top1`, or `val/top1` without attack.
    """
    check_settings(cfg)
    check_output_dir(cfg)

    # Imported here, so that a wrong setting is reported at once.
    from nsaug.training.loggers import is_rank_zero
    from nsaug.training.resume import find_resume_checkpoint

    folder, resume_from = find_resume_checkpoint(cfg.resume, Path(HydraConfig.get().runtime.output_dir))
    with lock_folder(folder, "train") if is_rank_zero() else nullcontext(), one_line_errors(folder):
        metrics = train(cfg, folder, resume_from)
    return metrics.get("val/adv_top1", metrics.get("val/top1"))


def train(cfg: DictConfig, folder: Path, resume_from: Path | None) -> dict[str, float]:
    """Build data, model and method, train, and export the weights.

    Args:
        cfg: the configuration.
        folder: of the run.
        resume_from: the checkpoint to resume from, in this folder; None for a new run.

    Returns:
        The last values of all metrics.
    """
    import lightning as L

    from nsaug.data import ImageDataModule, TestDataset
    from nsaug.methods import Method
    from nsaug.models import weights
    from nsaug.models.checkpoint_formats import select_model
    from nsaug.models.model_card import CARD, write_card
    from nsaug.models.noisy_vit import NoisyViT
    from nsaug.models.run_config import CONFIG, check_metadata
    from nsaug.training.checkpointing import AtomicCheckpointIO, check_disk_space, remove_partial_checkpoints
    from nsaug.training.fsdp import check_model
    from nsaug.training.loggers import LoggerConfig, finish, is_rank_zero, wandb_run_info
    from nsaug.training.resume import LAST, check_checkpoint, check_duration, check_same_config

    L.seed_everything(cfg.seed, workers=True, verbose=False)

    logger_config = instantiate(cfg.logger, LoggerConfig)
    data = instantiate(cfg.data, (ImageDataModule, TestDataset))
    data.setup("fit")
    check_data(cfg, data)
    vit = instantiate(cfg.model, NoisyViT, num_classes=data.num_classes, checkpoint=cfg.checkpoint)
    if is_sharded(cfg.trainer):
        check_model(vit)
    method = instantiate(cfg.method, Method)
    if method.num_views > 1 and method.view_augment is None and not data.augments:
        log.warning("%s: identical views: set data.crop, data.hflip or data.auto_augment", method.name)
    data.configure(vit.data_config, seed=cfg.seed, num_views=method.num_views, view_augment=method.view_augment)
    module = build_module(cfg, vit, method)
    if is_rank_zero():
        remove_partial_checkpoints(folder)
    check_disk_space(folder, vit)

    name = cfg.name or method.name
    durations = scale_duration(cfg.trainer, method.duration_factor)
    metadata = run_metadata(cfg, name, method.name, data)
    check_metadata(metadata, folder / CONFIG)
    previous = weights.read_metadata(folder) if resume_from else {}
    if resume_from:
        check_duration(resume_from, durations, folder)
        check_same_config(previous, metadata, folder)
        check_checkpoint(resume_from, module)

    config = tracked_config(cfg, name, method.name)
    title = run_title(name, {"nullspace.eps": config.get("eps")} | varying_settings(cfg), cfg.seed)
    loggers = logger_config.loggers(folder, title, multirun_name(), config, resume_from, previous.get("wandb"))
    metadata["wandb"] = wandb_run_info(loggers)
    write_config = partial(weights.save_config, folder, vit, metadata)
    finished = False
    try:
        callbacks = build_callbacks(cfg, folder, write_config, logger_config.num_images)
        trainer = instantiate(
            cfg.trainer,
            L.Trainer,
            logger=loggers,
            callbacks=callbacks,
            plugins=[AtomicCheckpointIO(), *as_list(instantiate(cfg.trainer.get("plugins")))],
            default_root_dir=folder,  # where Lightning looks for checkpoints of its own on Slurm
            **durations,
        )
        if trainer.strategy.root_device.type == "cpu":
            check_num_processes(f"trainer.devices={cfg.trainer.devices}", trainer.num_devices)
        if trainer.is_global_zero:  # before training: an interrupted run can be evaluated, too
            write_config()
        trainer.fit(module, datamodule=data, ckpt_path=resume_from)
        finished = True
    finally:
        finish(loggers, failed=not finished)

    if trainer.is_global_zero:
        # From the file: it holds the moving average, also when a finished run was resumed.
        best = getattr(trainer.checkpoint_callback, "best_model_path", "") if cfg.save == "best" else ""
        if best and not is_file(best):
            raise UserError(f"{best} was removed: {as_setting('checkpoint', folder / LAST)} has the last weights")
        state = select_model(weights.read_weights(best or folder / LAST), vit.state_dict()).weights
        if not weights.has_weights(folder, state) or not is_file(folder / CARD):
            write_card(folder)  # before the weights: its results are never those of other ones
        weights.save_weights(folder, state)
        log.info("%s: %s", name, format_metrics(trainer.callback_metrics, cfg.attack))
        log.info("weights (for timm) and %s (to resume): %s", LAST, folder)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def check_settings(cfg: DictConfig) -> None:
    """Check everything that can be checked without data and weights; raises UserError."""
    validate_config(cfg, TOP_LEVEL_KEYS)
    check_groups(cfg, GROUPS)
    check_values(cfg)
    for group, choice in (("data", "digits"), ("model", "micro")):
        if "_target_" not in cfg[group]:
            raise UserError(f"{group}=checkpoint is for evaluate.py: choose what to train, such as {group}={choice}")
    if (cfg.mixup.mixup_alpha or cfg.mixup.cutmix_alpha) and cfg.data.get("batch_size", 0) % 2:
        raise UserError(f"mixup and cutmix pair images: data.batch_size={cfg.data.batch_size} should be even")
    for key, advice in (("checkpoint", "type checkpoint=PATH"), ("num_classes", "it is that of the data")):
        if cfg.model.get(key) is not None:
            raise UserError(f"model.{key} cannot be set: {advice}")
    check_trainer(cfg.trainer)
    if is_sharded(cfg.trainer) and cfg.model.get("compile"):
        raise UserError("trainer=fsdp does not work with torch.compile: set model.compile=false, or type trainer=ddp")


def is_sharded(trainer: DictConfig) -> bool:
    """Whether the processes of a run share its weights, as with `trainer=fsdp`."""
    strategy = trainer.get("strategy")
    return isinstance(strategy, DictConfig) and strategy.get("_target_") == FSDP


def check_values(cfg: DictConfig) -> None:
    """Check the settings outside groups, as far as the configuration has them."""
    from nsaug.training.param_groups import Trainable
    from nsaug.utils.types import Decay, NonNegativeInt, PositiveInt, Seed, Text

    types = {
        "name": Text | None, "seed": Seed, "checkpoint": Text | None, "trainable": Trainable, "ema": Decay | None,
        "save": Literal["last", "best"], "val_attack_batches": NonNegativeInt, "resume": bool | Text | None,
        "checkpoint_every_n_steps": PositiveInt | None, "max_nonfinite_batches": NonNegativeInt,
    }  # fmt: skip
    for key, annotation in types.items():
        if key in cfg:
            validate_value(key, cfg[key], annotation, is_converted=False)


def check_trainer(trainer: DictConfig) -> None:
    """Refuse arguments of `lightning.Trainer` that a run of nsaug cannot take, and values that Lightning ignores."""
    from nsaug.utils.types import NonNegativeFloat, NonNegativeInt, PositiveInt

    types = {
        "accumulate_grad_batches": PositiveInt, "gradient_clip_val": NonNegativeFloat | None,
        "log_every_n_steps": NonNegativeInt | None, "num_nodes": PositiveInt,
    }  # fmt: skip
    for key, annotation in types.items():
        validate_value(f"trainer.{key}", trainer[key], annotation)
    if "logger" in trainer:
        raise UserError("trainer.logger cannot be set: choose the loggers with logger=wandb, logger=csv or logger=none")
    if trainer.get("fast_dev_run"):
        raise UserError(
            "trainer.fast_dev_run writes no checkpoint: type trainer.max_steps=1 trainer.limit_val_batches=1 instead"
        )
    if trainer.get("overfit_batches"):
        raise UserError(
            "trainer.overfit_batches would replace the order of the images, which resuming needs: type"
            " trainer.limit_train_batches=N instead"
        )
    if str(trainer.get("strategy")).startswith("fsdp"):
        raise UserError(f"trainer.strategy={trainer.strategy} cannot save the model: type trainer=fsdp")
    if is_sharded(trainer) and trainer.precision not in FSDP_PRECISIONS:
        choices = " or ".join(FSDP_PRECISIONS)
        raise UserError(f"trainer.precision={trainer.precision}: trainer=fsdp does not support it: choose {choices}")
    for key in ("max_epochs", "max_steps", "limit_train_batches"):
        if trainer.get(key) == 0:
            raise UserError(f"trainer.{key}=0 trains nothing: set it to 1 or more")
    if trainer.max_epochs == -1 and trainer.max_steps == -1:
        raise UserError("trainer.max_epochs=-1 needs trainer.max_steps: the learning rate decays over all steps")


def build_module(cfg: DictConfig, vit: "NoisyViT", method: "Method") -> "Finetuner":
    """Build the Lightning module."""
    from nsaug.training.lightning_module import AdamWConfig, Finetuner
    from nsaug.training.mixup import Mixup

    return Finetuner(
        vit,
        method,
        attack=instantiate(cfg.attack, Callable) if cfg.val_attack_batches else None,
        optim=instantiate(cfg.optim, AdamWConfig),
        mixup=instantiate(cfg.mixup, Mixup),
        seed=cfg.seed,
        val_attack_batches=cfg.val_attack_batches,
        trainable=cfg.trainable,
        max_nonfinite_batches=cfg.max_nonfinite_batches,
    )


def check_output_dir(cfg: DictConfig) -> None:
    """Refuse processes started by torchrun or srun without a common folder: each would make its own, named by time."""
    hydra = HydraConfig.get()
    separate = cfg.trainer.num_nodes > 1 or "TORCHELASTIC_RUN_ID" in os.environ or is_one_of_srun()
    named = any(override.startswith(("hydra.run.dir=", "hydra.sweep.dir=")) for override in hydra.overrides.hydra)
    if separate and not named:
        raise UserError(
            "each process would make its own output folder: add hydra.run.dir=outputs/train/NAME, the same for all, on"
            " a shared disk"
        )
    check_num_nodes("trainer.num_nodes", cfg.trainer.num_nodes)


def is_one_of_srun() -> bool:
    """Whether srun has started several processes of this command; Lightning ignores it in an interactive shell, too."""
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    return "SUBMITIT_EXECUTOR" not in os.environ and not interactive and os.environ.get("SLURM_NTASKS", "1") != "1"


def check_data(cfg: DictConfig, data: Any) -> None:
    """Check the settings that depend on the data."""
    from nsaug.utils.types import check_unique

    if cfg.save == "best" and not data.val_set:
        raise UserError("save=best needs validation images: set data.val_fraction above 0, or save=last")
    if data.num_classes < 2:
        raise UserError(f"the data have one class ({data.class_names[0]}): a classifier needs two or more")
    try:
        check_unique(data.class_names)
    except ValueError as error:
        raise UserError(f"the names of the classes should differ: {error}") from error


def run_metadata(cfg: DictConfig, name: str, method: str, data: "ImageDataModule") -> dict[str, Any]:
    """What config.json records of a run: enough to evaluate its weights on its data and to group runs by settings."""
    from nsaug.data.registry import record_data
    from nsaug.models import weights
    from nsaug.models.model_card import find_base
    from nsaug.models.run_config import CONTROL

    config: Any = OmegaConf.to_container(cfg, resolve=True)
    data_args = {key: value for key, value in config["data"].items() if not key.startswith("_")}
    keys = ("data", "model", "nullspace", "method", "optim", "mixup", "trainable", "ema", "save", "trainer")
    start = None
    if cfg.checkpoint:
        file = weights.resolve_path(cfg.checkpoint)
        start = weights.run_name(file, weights.read_metadata(file.parent))
    settings = {key: config[key] for key in keys} | {"start": start}
    return {
        "command": [setting for setting in HydraConfig.get().overrides.task if not CONTROL.search(setting)],
        "base": find_base(config["model"], cfg.checkpoint),
        "name": name,
        "method": method,
        "seed": cfg.seed,
        "data": record_data(config["data"]["_target_"], data_args),
        "splits": data.record_splits(),
        "class_names": data.class_names,
        "settings": settings,
    }


def tracked_config(cfg: DictConfig, name: str, method: str) -> dict[str, Any]:
    """Configuration of a W&B run: all settings, and the columns by which evaluations are grouped, too."""
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    config |= {"name": name, "method_name": method}
    return config | ({"eps": cfg.nullspace.eps} if "nullspace" in method and "eps" in cfg.nullspace else {})


def build_callbacks(cfg: DictConfig, folder: Path, write_config: Callable[[], None], num_images: int) -> list[Any]:
    """Lightning's callbacks of a run with an output folder; those of `trainer.callbacks` come last."""
    from lightning.pytorch.callbacks import ModelCheckpoint

    from nsaug.training.callbacks import NoiseImageLogger, UnreadableImages
    from nsaug.training.checkpointing import LastCheckpoint
    from nsaug.training.stopping import StopSignals

    callbacks: list[Any] = []
    if cfg.save == "best":  # before LastCheckpoint, which saves the state of the other callbacks
        options: dict[str, Any] = {"enable_version_counter": False, "auto_insert_metric_name": False}
        callbacks.append(ModelCheckpoint(folder, filename="best", monitor="val/top1", mode="max", **options))
    signals = StopSignals(requeue=bool(cfg.resume))
    callbacks += [LastCheckpoint(folder, write_config, cfg.checkpoint_every_n_steps, signals), UnreadableImages()]
    if num_images:
        callbacks.append(NoiseImageLogger(folder, num_images))
    return callbacks + training_callbacks(cfg)


def training_callbacks(cfg: DictConfig) -> list[Any]:
    """Lightning's callbacks that need no output folder; those of `trainer.callbacks` come last."""
    from nsaug.training.callbacks import NoiseMonitor, Progress, ProgressLines, ValidateAtEnd
    from nsaug.training.moving_average import MovingAverage

    callbacks: list[Any] = [ValidateAtEnd(), NoiseMonitor()]
    if cfg.ema is not None:
        callbacks.append(MovingAverage(cfg.ema))
    if cfg.trainer.enable_progress_bar:
        callbacks.append(Progress() if sys.stdout.isatty() else ProgressLines())
    return callbacks + as_list(instantiate(cfg.trainer.get("callbacks")))


def scale_duration(trainer: DictConfig, factor: float) -> dict[str, int]:
    """`max_epochs` and `max_steps` times the method's factor; -1 and null stay as they are."""
    durations = {key: trainer[key] for key in ("max_epochs", "max_steps") if trainer[key] and trainer[key] > 0}
    return {key: max(1, round(factor * count)) for key, count in durations.items()}


def multirun_name() -> str | None:
    """The name of a multirun's folder, as the W&B group of its runs; None for a single run."""
    hydra = HydraConfig.get()
    return Path(hydra.sweep.dir).name if hydra.mode == RunMode.MULTIRUN else None


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


@contextmanager
def one_line_errors(folder: Path) -> Iterator[None]:
    """Turn what can stop training into one line that says how to continue."""
    import torch
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from nsaug.training.lightning_module import NonFiniteLoss
    from nsaug.training.loggers import is_rank_zero
    from nsaug.training.resume import LAST, find_last_checkpoint
    from nsaug.training.stopping import Stopped

    def advice() -> str:
        if (folder / LAST).exists():
            return f"type python train.py {as_setting('resume', folder)} to continue"
        return "no checkpoint was written yet"

    with one_line_faults(advice):
        try:
            yield
        except SIGTERMException:  # it came before `StopSignals` replaced Lightning's handler
            raise Interrupted(signal.SIGTERM) from None
        except Stopped as error:
            if not is_rank_zero():
                sys.exit()  # with code 0: Lightning kills the first process, which is still at work, for any other
            raise Interrupted(error.number, error.advice) from None
        except NonFiniteLoss as error:
            last = find_last_checkpoint(folder)
            saved = f"the last good checkpoint is {last}" if last else "no checkpoint was written yet"
            raise UserError(f"{error} ({saved})") from None
        except UserError:
            raise
        except Exception as error:
            if not is_restoring(error) or isinstance(error, OSError | MemoryError | torch.OutOfMemoryError):
                raise
            raise UserError(
                f"{folder / LAST} cannot be restored ({with_type(error)}): start the run again, without resume"
            ) from error


def is_restoring(error: Exception) -> bool:
    """Whether Lightning raised an error while it restored a checkpoint."""
    return any(
        frame.f_globals.get("__name__", "").endswith("checkpoint_connector") and "restore" in frame.f_code.co_name
        for frame, _ in traceback.walk_tb(error.__traceback__)
    )


def format_metrics(metrics: Any, attack: DictConfig) -> str:
    """The summary line of a run: validation accuracy, and how much of the noise is below eps."""
    radius = f" (eps {attack.eps})" if "eps" in attack else ""
    under_attack = f"under {attack._target_.rpartition('.')[2]}{radius}"
    labels = {"val/top1": "val top-1", "val/adv_top1": under_attack, "train/converged": "noise below eps"}
    parts = [f"{label} {100 * float(metrics[key]):.1f} %" for key, label in labels.items() if key in metrics]
    return ", ".join(parts) or "no validation"


if __name__ == "__main__":
    main()
