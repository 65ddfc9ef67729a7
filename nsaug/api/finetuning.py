"""`nsaug.finetune`: train.py on a model and loaders of your own."""

import copy
import signal
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from nsaug.api.models import Model, find_device, load_model
from nsaug.api.settings import training_config, value_errors
from nsaug.cli import train
from nsaug.cli.app import instantiate, quiet_libraries
from nsaug.data.checked_loader import BatchFormat, CheckedLoader
from nsaug.methods import Method
from nsaug.utils.rng import seed_devices_scope

if TYPE_CHECKING:
    import pandas as pd
    from omegaconf import DictConfig


@dataclass(frozen=True, eq=False)
class Finetuned:
    """What `finetune` returns.

    Attributes:
        model: the finetuned timm model, in eval mode and on the device of the original. Like every timm model it takes
            normalized images; `evaluate` and `NoisyViT` normalize them themselves.
        history: one row per epoch: `epoch`, `step`, the mean of every training metric over the steps (`train/loss`,
            `train/influence`, ...) and, with `val_loader`, `val/top1`, `val/adv_top1` and `val/loss`.
    """

    model: Any
    history: "pd.DataFrame"


def finetune(
    model: Model,
    train_loader: Iterable[Any],
    *,
    method: str | Method = "nullspace",
    epochs: int = 10,
    val_loader: Iterable[Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> Finetuned:
    """Finetune a copy of a vision transformer, as `python train.py` does; `model` is left as it is.

    Args:
        model: a timm vision transformer, a `NoisyViT`, the folder of a run, a weights file with its config.json, or the
            name of a timm model, whose pretrained weights are then loaded with their own classes.
        train_loader: a DataLoader or another iterable with a length that yields batches (images, labels). Images are
            floats (B, 3, H, W) in [0, 1], of the size that the model takes, augmented but not normalized: the model
            gets them normalized by timm's mean and std of its weights. A method with several views of an image takes
            (B, views, 3, H, W). Labels are class indices (B,) below the model's number of classes.
        method: a choice of conf/method, such as clean, nullspace, random_noise or pgd; or an object of `nsaug.methods`,
            of which a copy is used.
        epochs: passes over the loader; the learning rate falls to zero over all of them. `clean_same_compute` makes as
            many more as nullspace noise costs.
        val_loader: likewise; evaluated after every epoch. `val_attack_batches` of its batches are also attacked by PGD.
        settings: of train.py, by their names there: `{"nullspace.eps": 0.05, "optim.lr": 3e-5, "ema": 0.999}`.
        seed: of all draws. Those of the loaders follow it as far as they come from the global generators, whose states
            are restored at the end.
        device: where to compute, such as "cuda:1"; None: where the model is or, if that is the CPU, the best device.

    Raises:
        ValueError: a wrong argument or batch, in one line.
    """
    with value_errors():
        cfg = training_config(method, epochs, settings or {}, seed)
        with quiet_libraries(), seed_devices_scope(seed):
            return _finetune(cfg, model, train_loader, val_loader, method, device)


def _finetune(
    cfg: "DictConfig", model: Model, train_loader: Any, val_loader: Any, method: str | Method, device: Any
) -> Finetuned:
    import lightning as L
    import pandas as pd
    from lightning.pytorch.plugins.environments import LightningEnvironment

    from nsaug.training.callbacks import History

    chosen = copy.deepcopy(method) if isinstance(method, Method) else instantiate(cfg.method, Method)
    _, vit = load_model(model)
    original, dtype = vit.mean.device, vit.mean.dtype
    target = find_device(device, original)
    train_batches = CheckedLoader(train_loader, BatchFormat.of(vit, "train_loader", chosen.num_views))
    val_batches = None if val_loader is None else CheckedLoader(val_loader, BatchFormat.of(vit, "val_loader"))
    trained = {name: parameter.requires_grad for name, parameter in vit.named_parameters()}
    module = train.build_module(cfg, vit.train(), chosen)
    history = History()
    # Lightning looks for checkpoints of Slurm jobs in its folder, and on Slurm it would write one and requeue the job.
    with tempfile.TemporaryDirectory() as empty, _keyboard_interrupts():
        trainer = instantiate(
            cfg.trainer,
            L.Trainer,
            accelerator=target.type,
            devices=1 if target.index is None else [target.index],
            logger=False,
            enable_checkpointing=False,
            callbacks=[*train.training_callbacks(cfg), history],
            plugins=[LightningEnvironment(), *train.as_list(instantiate(cfg.trainer.get("plugins")))],
            default_root_dir=empty,
            **train.scale_duration(cfg.trainer, chosen.duration_factor),
        )
        trainer.fit(module, train_batches, val_batches)
    for name, parameter in vit.named_parameters():
        parameter.requires_grad_(trained[name])
    vit.zero_grad()
    return Finetuned(vit.release().to(original, dtype).eval(), pd.DataFrame(history.rows))


@contextmanager
def _keyboard_interrupts() -> Iterator[None]:
    """Pass Ctrl-C on as KeyboardInterrupt: Lightning would end the process, and ignore it from then on."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from None
