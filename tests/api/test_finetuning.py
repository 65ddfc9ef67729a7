"""nsaug.finetune: what train.py does, with a model and loaders of a program that stays as it is."""

import copy
import os
import random
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import nsaug
from nsaug.cli import train
from nsaug.data import Digits
from nsaug.methods import Clean, NoiseAugmentation
from nsaug.models.factory import build_vit
from nsaug.models.noisy_vit import NoisyViT
from nsaug.models.weights import read_weights
from nsaug.nullspace import NullspaceNoise
from tests.commands import FAST, run
from tests.conftest import ROOT, TINY, tiny_vit

IMAGES = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(40) % 10
ONE_STEP = {"trainer.max_steps": 1}

pytestmark = pytest.mark.usefixtures("tmp_cwd")


def loader(batch_size=8, shuffle=True, **options):
    return DataLoader(TensorDataset(IMAGES, LABELS), batch_size=batch_size, shuffle=shuffle, **options)


@pytest.fixture
def model():
    """A timm model, as a user builds it."""
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", img_size=8, patch_size=2, num_classes=10, **TINY)


def same_weights(model, other):
    state = other.state_dict()
    return all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_model_is_left_as_it_is(model):
    before = copy.deepcopy(model).train()
    model.train()
    model.blocks[0].eval()
    model.cls_token.requires_grad_(False)
    tuned = nsaug.finetune(model, loader(), epochs=1, settings={"optim.lr": 0.01, "trainable": "last_1"})
    assert same_weights(model, before)
    assert [part.training for part in model.blocks] == [False, True]
    assert type(tuned.model) is type(model)
    assert not any(module.training for module in tuned.model.modules())
    assert not same_weights(tuned.model.head, model.head)
    assert same_weights(tuned.model.blocks[0], model.blocks[0])
    for name, parameter in tuned.model.named_parameters():  # trainable again, unless the caller froze it
        assert parameter.requires_grad == (name != "cls_token")
        assert parameter.grad is None
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tuned.model.modules())


def test_global_state_of_the_program_is_left_as_it_is(model, tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    nsaug.finetune(model, loader(), settings=ONE_STEP)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert signal.getsignal(signal.SIGINT) is handler
    assert list(tmp_path.iterdir()) == []


def test_a_seed_repeats_order_noise_and_dropout(model):
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=8, patch_size=2, num_classes=10, drop_path_rate=0.5, **TINY
    )
    results = []
    for seed in (3, 3, 4):
        torch.manual_seed(len(results))
        settings = {"nullspace.init_scale": 1, "trainer.max_steps": 2}
        results.append(nsaug.finetune(model, loader(), seed=seed, settings=settings).model)
    assert same_weights(results[0], results[1])
    assert not same_weights(results[0], results[2])


def test_same_weights_as_the_command(trained, monkeypatch, tmp_path):
    settings = {"nullspace.eps": 0.05, "optim.lr": 1e-3, "optim.weight_decay": 0.01, "trainer.max_steps": 4}
    typed = [f"{name}={value}" for name, value in settings.items()]
    run(train, monkeypatch, *FAST, *typed, f"checkpoint={trained}", "seed=1", f"hydra.run.dir={tmp_path}/tuned")
    data = Digits(batch_size=64, num_workers=0, crop="none", hflip=0)
    data.setup()
    vit = build_vit("vit_tiny_patch16_224", checkpoint=str(trained), args=model_args(trained))
    data.configure(vit.data_config, seed=1)
    validation = {"val_attack_batches": 1}
    tuned = nsaug.finetune(
        trained, data.train_dataloader(), val_loader=data.val_dataloader(), seed=1, settings=settings | validation
    )
    for key, value in read_weights(tmp_path / "tuned").items():
        assert torch.equal(value, tuned.model.state_dict()[key]), key
    row = pd.read_csv(tmp_path / "tuned" / "metrics.csv").ffill().iloc[-1]
    for name in ("val/top1", "val/adv_top1", "val/loss"):
        assert tuned.history[name].iloc[-1] == row[name]


def model_args(folder):
    from nsaug.models.weights import read_config

    args = read_config(folder)["model_args"]
    return {key: value for key, value in args.items() if key not in ("num_classes", "img_size")}


class Recorder(Clean):
    """Plain finetuning that keeps the loss of every step, and the weights before it."""

    losses: list[float] = []  # noqa: RUF012
    weights: list[torch.Tensor] = []  # noqa: RUF012

    def loss(self, model, images, targets, generator):
        loss, metrics = super().loss(model, images, targets, generator)
        self.losses.append(loss.item())
        self.weights.append(model.model.head.weight.detach().clone())
        return loss, metrics


@pytest.fixture
def recorder(monkeypatch):
    monkeypatch.setattr(Recorder, "losses", [])
    monkeypatch.setattr(Recorder, "weights", [])
    return Recorder()


def test_history_has_means_over_the_steps_and_validation(model, recorder):
    tuned = nsaug.finetune(model, loader(), method=recorder, epochs=3, val_loader=loader(16, False))
    history = tuned.history
    assert history["epoch"].tolist() == [0, 1, 2]
    assert history["step"].tolist() == [5, 10, 15]
    expected = np.array(recorder.losses).reshape(3, 5).mean(1)
    np.testing.assert_allclose(history["train/loss"], expected, rtol=1e-6)
    with torch.no_grad():
        logits = NoisyViT(tuned.model)(IMAGES)
    assert history["val/loss"].iloc[-1] == pytest.approx(float(F.cross_entropy(logits, LABELS)), rel=1e-5)
    assert history["val/top1"].iloc[-1] == pytest.approx(float((logits.argmax(1) == LABELS).float().mean()))


def test_history_leaves_out_skipped_batches(model, monkeypatch):
    """The first loss of every epoch is not finite."""
    losses = iter([float("nan"), 100.0, 200.0, 300.0, 400.0] * 2)
    monkeypatch.setattr(Clean, "loss", lambda self, vit, *_: (vit(IMAGES[:2]).sum() * 0 + next(losses), {}))
    settings = {"max_nonfinite_batches": 2}
    history = nsaug.finetune(model, loader(), method="clean", epochs=2, settings=settings).history
    assert history["train/loss"].tolist() == [250, 250]


def test_files_and_jobs_of_slurm_are_left_alone(model, monkeypatch, tmp_path):
    """Lightning writes hpc_ckpt_N.ckpt at SIGUSR1, and reads what lies in the working directory."""
    (tmp_path / "hpc_ckpt_1.ckpt").write_bytes(b"of another program")
    for name, value in {"NTASKS": "1", "JOB_ID": "77", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    received = []
    monkeypatch.setattr(
        Clean, "loss", lambda self, vit, *_: (signal.raise_signal(signal.SIGUSR1), (vit(IMAGES[:2]).sum(), {}))[1]
    )
    previous = signal.signal(signal.SIGUSR1, lambda *_: received.append(1))
    try:
        nsaug.finetune(model, loader(), method="clean", epochs=1, settings=ONE_STEP)
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert received == [1]
    assert [path.name for path in tmp_path.iterdir()] == ["hpc_ckpt_1.ckpt"]


def test_low_precision_ends_in_that_of_the_model(model):
    tuned = nsaug.finetune(
        model, loader(), method="clean", epochs=1, settings=ONE_STEP | {"trainer.precision": "bf16-true"}
    )
    assert {value.dtype for value in tuned.model.state_dict().values()} == {torch.float32}
    assert not same_weights(tuned.model, model)


def test_names_are_completed():
    assert {"finetune", "evaluate", "__version__"} <= {*dir(nsaug)}


def test_without_validation_there_are_no_validation_metrics(model):
    history = nsaug.finetune(model, loader(), epochs=1, settings={"nullspace.num_steps": 0}).history
    assert not any(name.startswith("val/") for name in history.columns)
    assert {"train/influence", "train/converged"} <= {*history.columns}


class Restarting:
    """Like a DataLoader with persistent workers: a new iterator takes the place of the one before."""

    def __init__(self):
        self.batches = [(IMAGES[start : start + 8], LABELS[start : start + 8]) for start in range(0, 40, 8)]
        self.position = 0

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        self.position = 0
        return self

    def __next__(self):
        if self.position == len(self.batches):
            raise StopIteration
        self.position += 1
        return self.batches[self.position - 1]


class RecordedNoise(NoiseAugmentation):
    """Counts the images of the steps."""

    counts: list[int] = []  # noqa: RUF012

    def loss(self, model, images, targets, generator):
        self.counts.append(len(images))
        return super().loss(model, images, targets, generator)


def test_universal_noise_leaves_the_batches_to_the_epoch(model, monkeypatch):
    from nsaug.nullspace import UniversalNoise

    monkeypatch.setattr(RecordedNoise, "counts", [])
    method = RecordedNoise(UniversalNoise(eps=1e-9, num_passes=1, data_fraction=0.5))
    tuned = nsaug.finetune(model, Restarting(), method=method, epochs=2)
    assert sum(RecordedNoise.counts) == 2 * len(IMAGES)
    assert tuned.history["train/noise_rms"].iloc[0] > 0


def test_methods_are_names_or_objects(model):
    settings = {"optim.lr": 1e-3, "trainer.max_steps": 2}
    named = nsaug.finetune(model, loader(), method="nullspace", settings=settings | {"nullspace.eps": 0.1})
    method = NoiseAugmentation(NullspaceNoise(eps=0.1))
    given = nsaug.finetune(model, loader(), method=method, settings=settings)
    assert same_weights(named.model, given.model)


def test_control_of_equal_compute_takes_more_epochs(model):
    history = nsaug.finetune(model, loader(), method="clean_same_compute", epochs=1).history
    assert len(history) == 4  # (6 + 2 * 3) / 3


def test_moving_average_is_returned(model, recorder):
    settings = {"optim.lr": 0.01, "trainer.max_steps": 3}
    last = nsaug.finetune(model, loader(), method=recorder, settings=settings).model.head.weight
    _, first, second = recorder.weights
    averaged = nsaug.finetune(model, loader(), method="clean", settings=settings | {"ema": 0.9}).model.head.weight
    expected = 0.9 * (0.9 * first + 0.1 * second) + 0.1 * last
    torch.testing.assert_close(averaged, expected)
    assert not torch.allclose(averaged, last)


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_on_whatever_mode_the_model_is_in(training):
    torch.manual_seed(0)
    options = {"img_size": 8, "patch_size": 2, "num_classes": 10, "drop_path_rate": 0.9, **TINY}
    model = timm.create_model("vit_tiny_patch16_224", **options).train(training)
    losses = nsaug.finetune(model, [(IMAGES, LABELS)] * 2, epochs=1, settings={"optim.lr": 1e-9}).history
    with torch.no_grad():
        without = F.cross_entropy(NoisyViT(model).eval()(IMAGES), LABELS)
    assert abs(losses["train/clean_loss"].iloc[0] - float(without)) > 1e-3


def test_ctrl_c_is_a_keyboard_interrupt(model):
    class Interrupted(Clean):
        def loss(self, *args):
            raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        nsaug.finetune(model, loader(), method=Interrupted())
    assert signal.getsignal(signal.SIGINT) is handler


def test_double_precision_and_a_noisy_vit():
    vit = tiny_vit().double()
    tuned = nsaug.finetune(vit, loader(), method="clean", settings=ONE_STEP)
    assert tuned.model.head.weight.dtype == torch.float64
    assert type(tuned.model) is type(vit.model)
    noise = torch.randn(1, 16, 24, dtype=torch.float64)
    with torch.no_grad():
        assert not torch.equal(vit(IMAGES[:2].double(), noise), vit(IMAGES[:2].double()))  # has its hooks


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "nullspce"}, "method=nullspce: no such choice; method is one of augmix, clean, clean_same_compute"),
        ({"method": 3}, "method is a int: pass a name, such as 'nullspace', or a Method"),
        ({"method": "augmix"}, "train_loader yields images of shape (8, 3, 8, 8), not (B, 3, 3, 8, 8): this method"),
        ({"epochs": 0}, "epochs=0: should be greater than or equal to 1"),
        ({"seed": -1}, "seed=-1: should be greater than or equal to 0"),
        ({"device": "cuda:99"}, "device=cuda:99 cannot be used"),
        ({"settings": ["optim.lr=1"]}, 'settings is a list: pass a dict, such as {"optim.lr": 3e-5}'),
        ({"settings": {"optim.lr": "fast"}}, "optim.lr=fast: should be a valid number"),
        ({"settings": {"nullspace.epz": 1}}, "nullspace.epz: no such setting; did you mean nullspace.eps?"),
        ({"settings": {"optimizer.lr": 1}}, "settings of nsaug.finetune: optimizer.lr: no such setting; choose among"),
        ({"settings": {"data.root": "x"}}, "settings of nsaug.finetune: data.root: no such setting"),
        (
            {"settings": {"trainer.max_epochs": 3}},
            "settings: trainer.max_epochs is not a setting of nsaug.fi",
        ),
        (
            {"settings": {"trainer.devices": 2}},
            "settings: trainer.devices is not a setting of nsaug.finetu",
        ),
        (
            {"settings": {"trainer": {"precision": "16-true"}}},
            "settings: trainer is not a setting of nsaug.finetune: type",
        ),
        ({"settings": {"trainer.limit_train_batches": 0}}, "trainer.limit_train_batches=0 trains nothing"),
        ({"settings": {"trainer.strategy": "ddp"}}, "settings: trainer.strategy is not a setting of nsaug.finet"),
        ({"settings": {"trainer.fast_dev_run": True}}, "trainer.fast_dev_run writes no checkpoint"),
        ({"settings": {"trainable": "tail"}}, "trainable=tail: should be all, head, or last_N"),
        ({"settings": {"mixup.mixup_alpha": 0.5}, "train_loader": [(IMAGES[:3], LABELS[:3])]}, "mixup and cutmix pair"),
        ({"method": Clean(), "settings": {"nullspace.eps": 0.1}}, "settings: nullspace.eps has no effect, because met"),
        ({"train_loader": []}, "train_loader is empty"),
        ({"val_loader": [(IMAGES, LABELS.float())]}, "val_loader yields labels of torch.float32 and shape (40,)"),
    ],
)
def test_mistakes_are_one_line(model, arguments, message):
    train_loader = arguments.pop("train_loader", loader())
    with pytest.raises(ValueError) as error:  # noqa: PT011  (the message is compared below)
        nsaug.finetune(model, train_loader, **arguments)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


APPLICATION = """
import hydra, timm, torch
from hydra.core.hydra_config import HydraConfig

@hydra.main(version_base="1.2", config_path=None)
def main(cfg):
    import nsaug
    size = {"img_size": 8, "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=2, **size)
    batches = [(torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 0, 1]))]
    tuned = nsaug.finetune(model, batches, epochs=1, settings={"trainer.limit_train_batches": 1})
    result = nsaug.evaluate(tuned.model, batches, suite="clean")
    folder = HydraConfig.get().runtime.output_dir
    print("x", cfg.x, folder.rpartition("/")[2], hydra.version.getbase(), len(result.table) > 0)

main()
"""


@pytest.mark.slow
def test_inside_an_application_with_hydra(tmp_path):
    (tmp_path / "application.py").write_text(APPLICATION)
    command = [sys.executable, "application.py", "-m", "+x=1,2", "hydra.sweep.dir=out", "hydra.sweep.subdir=run${x}"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("x ")]
    assert lines == ["x 1 run1 1.2 True", "x 2 run2 1.2 True"]
