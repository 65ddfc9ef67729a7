"""FSDP in two processes against one process, for every method."""

import os
from unittest import mock

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, DistributedSampler

from nsaug.attacks import FGSM
from nsaug.cli import train
from nsaug.models.factory import build_vit
from nsaug.models.weights import read_metadata
from nsaug.training.fsdp import FSDP, check_model, full_tensors
from nsaug.training.lightning_module import AdamWConfig, Finetuner, NonFiniteLoss
from nsaug.utils.errors import UserError
from nsaug.utils.rng import Stream
from nsaug.utils.rng import make_generator as draws
from tests.commands import FAST, cli_error, metrics
from tests.conftest import ROOT, tiny_vit
from tests.training.ranks import start_ranks, wait
from tests.training.test_lightning_module import METHODS, make_data, start_from_the_image, trainer

SWIN = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "window_size": 2, "drop_path_rate": 0.0}
XCIT = {"embed_dim": 16, "depth": 1, "num_heads": 1}
MODELS = {
    "vit": lambda: tiny_vit(),
    "checkpointing": lambda: tiny_vit(grad_checkpointing=True),
    "swin": lambda: small("swin_tiny_patch4_window7_224", 32, SWIN),
    "eva02": lambda: small("eva02_tiny_patch14_224", 28, {"embed_dim": 24, "depth": 2, "num_heads": 2}),
}


def small(name, size, args):
    torch.manual_seed(0)
    return build_vit(name, num_classes=10, img_size=size, pretrained=False, args=args)


class KeepGradients(Finetuner):
    """Keeps the whole gradients of the last step."""

    def on_before_optimizer_step(self, optimizer):
        gradients = [parameter.grad for parameter in self.vit.parameters() if parameter.requires_grad]
        self.sharded = all(isinstance(gradient, DTensor) for gradient in gradients)
        self.kept = full_tensors(gradients, keep=True)


class SlowerInOneProcess:
    """An attack that takes more forwards and gradients in the second process."""

    def __init__(self, rank):
        self.rank = rank

    def __call__(self, model, images, labels, generator=None):
        for _ in range(1 + 2 * self.rank):
            images = FGSM(eps=0.1)(model, images, labels, generator)
        return images


def fit(rank, module, data, world=2, batch_size=4, val_loader=None, **options):
    """Fit on FSDP in two processes, or in one process."""
    strategy = {"strategy": FSDP(), "devices": world} if world > 1 else {}
    sampler = DistributedSampler(data, world, rank, shuffle=False)
    trainer(**strategy | {"max_steps": 1} | options).fit(
        module, DataLoader(data, batch_size=batch_size, sampler=sampler), val_loader
    )
    return module


def finetuner(name="clean", vit=None, **options):
    vit = tiny_vit() if vit is None else vit
    return KeepGradients(vit.double(), METHODS[name]().double(), AdamWConfig(lr=1e-3), seed=0, **options)


def larger(data, size):
    return [(torch.nn.functional.interpolate(image[None], size=size)[0], *rest) for image, *rest in data]


def model_data(vit):
    return larger(make_data(8), vit.data_config["input_size"][1:])


def one_model(rank, name, world):
    vit = MODELS[name]()
    return fit(rank, finetuner("per_image", vit), model_data(vit), world, batch_size=8 // world).kept


def clipped(rank, trainable, world):
    """A module with some frozen weights after steps with a small norm of the gradients."""
    options = {"gradient_clip_val": 0.01, "max_steps": 2}
    return fit(rank, finetuner("universal", trainable=trainable), make_data(16), world, 8 // world, **options)


def per_method(rank):
    results = {}
    for name in METHODS:
        module = fit(rank, finetuner(name), make_data(16), accumulate_grad_batches=2)
        assert module.sharded
        results[name] = {"gradients": module.kept}
        if name == "universal":
            results[name]["noise"] = module.method.noise.noise
    return results


def others(rank):
    """What else depends on sharding."""
    results = {}
    with mock.patch("nsaug.nullspace.per_image.start_noise", start_from_the_image):
        for name in MODELS:
            results[name] = one_model(rank, name, 2)
    for trainable in ("head", "last_1"):
        results[trainable] = full_tensors(clipped(rank, trainable, 2).vit.state_dict(), keep=True)
    slower = finetuner(attack=SlowerInOneProcess(rank), val_attack_batches=2)
    epoch = {"max_steps": -1, "max_epochs": 1}
    fit(rank, slower, make_data(16), val_loader=DataLoader(make_data(8), batch_size=4), **epoch)
    results["adv_top1"] = slower.trainer.callback_metrics["val/adv_top1"]
    data = make_data(16)
    data[1][0].fill_(torch.nan)  # in the second process
    try:
        fit(rank, finetuner(), data)
    except NonFiniteLoss as error:
        results["nan"] = str(error)
    module = fit(rank, finetuner(max_nonfinite_batches=1), data)
    results["skipped"] = module.skipped
    module = Finetuner(tiny_vit(), METHODS["per_image"](), AdamWConfig(), seed=0)
    data = [(image.float(), *rest) for image, *rest in make_data(16)]
    fit(rank, module, data, precision="bf16-mixed", gradient_clip_val=1.0)
    results["bf16-mixed"] = module.trainer.callback_metrics["train/loss"]
    module = Finetuner(tiny_vit(), METHODS["per_image"](), AdamWConfig(), seed=0)
    fit(rank, module, data, precision="bf16-true", gradient_clip_val=1.0)
    results["bf16-true"] = module.trainer.callback_metrics["train/loss"]
    return results


def run_rank(path: str) -> None:
    """The body of one of two processes."""
    torch.set_num_threads(1)
    rank = int(os.environ["LOCAL_RANK"])
    torch.save(per_method(rank) | others(rank), f"{path}/{rank}")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """The results of two processes over gloo."""
    folder = tmp_path_factory.mktemp("fsdp")
    code = f"from tests.training.test_fsdp import run_rank; run_rank('{folder}')"
    results = wait(start_ranks(2, "-c", code, cwd=ROOT))
    assert [code for code, _ in results] == [0, 0], results
    return [torch.load(folder / str(rank)) for rank in range(2)]


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_gradients_are_those_of_one_process(name, ranks):
    """Two ranks with two accumulated batches each, against the mean of four gradients of `Method.loss`."""
    results = [rank[name] for rank in ranks]
    torch.testing.assert_close(results[0], results[1], atol=0, rtol=0)  # universal noise, too
    data = make_data(16)
    images, labels = torch.stack([x for x, _, _ in data]), torch.stack([y for _, y, _ in data])
    method, vit = METHODS[name]().double(), tiny_vit().double().train()
    if name == "universal":
        method.setup(vit)
        method.noise.noise.copy_(results[0]["noise"])
    for rank in range(2):
        for step in range(2):
            subset = slice(rank + 8 * step, 8 * (step + 1), 2)  # as DistributedSampler splits them
            loss, _ = method.loss(vit, images[subset], labels[subset], draws("cpu", 0, Stream.TRAINING, step, rank))
            (loss / 4).backward()
    close(results[0]["gradients"], [parameter.grad for parameter in vit.parameters()])


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_models(name, ranks):
    """Nested blocks, other forwards, and blocks that are recomputed in the backward."""
    with mock.patch("nsaug.nullspace.per_image.start_noise", start_from_the_image):
        expected = one_model(0, name, 1)
    close(ranks[0][name], expected)


@pytest.mark.slow
@pytest.mark.parametrize("trainable", ["head", "last_1"])
def test_frozen_weights_and_clipped_gradients(trainable, ranks):
    close(ranks[0][trainable], clipped(0, trainable, 1).vit.state_dict())


@pytest.mark.slow
def test_validation_may_take_longer_in_one_process(ranks):
    assert ranks[0]["adv_top1"] == ranks[1]["adv_top1"]


@pytest.mark.slow
def test_all_processes_end_at_the_loss_of_one(ranks):
    advice = "lower optim.lr, or skip such batches with max_nonfinite_batches=1"
    assert ranks[0]["nan"] == f"batch 0: the loss is not finite in another process: {advice}"
    assert ranks[1]["nan"] == f"batch 0: the loss is nan: {advice}"
    assert [rank["skipped"] for rank in ranks] == [1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_half_precision(precision, ranks):
    module = Finetuner(tiny_vit(), METHODS["per_image"](), AdamWConfig(), seed=0)
    data = [(image.float(), *rest) for image, *rest in make_data(16)][::2]
    fit(0, module, data, 1)
    torch.testing.assert_close(ranks[0][precision], module.trainer.callback_metrics["train/loss"], atol=0.05, rtol=0.05)


@pytest.mark.slow
def test_runs_end_with_the_same_files(tmp_path):
    """train.py in one process, and in two with DDP and FSDP: checkpoints, weights for timm, metrics.

    In float64, with universal noise, whose draws are the same for any number of processes; batches and validation
    images that the processes cannot share evenly, and an epoch that ends in the middle of accumulated batches.
    """
    common = [
        "data=custom", "data._target_=tests.training.ranks.DoubleImages", "data.count=33", "data.val_fraction=0.25",
        "data.crop=none", "data.num_workers=0", "model=custom", "model._target_=tests.training.ranks.double_vit",
        "nullspace=universal", "nullspace.init_scale=1", "nullspace.eps=1e-9", "nullspace.data_fraction=0.5",
        "trainer.accelerator=cpu", "trainer.max_epochs=2", "trainer.accumulate_grad_batches=2",
        "trainer.gradient_clip_val=0.1", "trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1",
        "optim.lr=0.01", "ema=0.5", "val_attack_batches=2", "logger=csv",
    ]  # fmt: skip
    choices = {
        "one": ["trainer=auto", "data.batch_size=8"],
        "ddp": ["trainer=ddp", "trainer.devices=2", "data.batch_size=4"],
        "fsdp": ["trainer=fsdp", "trainer.devices=2", "data.batch_size=4"],
    }
    for name, settings in choices.items():
        command = [str(ROOT / "train.py"), *common, *settings, f"hydra.run.dir={tmp_path}/{name}"]
        ((code, error),) = wait(start_ranks(1, *command, cwd=tmp_path, env=lambda *_: {}))
        assert code == 0, error
    splits = read_metadata(tmp_path / "one")["splits"]
    assert (splits["train"]["count"] % 8, splits["train"]["count"] // 8 % 2, splits["val"]["count"] % 2) == (2, 1, 1)
    checkpoints, weights, rows = ([read(tmp_path / name) for name in choices] for read in (last, exported, logged))
    for name in ("ddp", "fsdp"):
        index = list(choices).index(name)
        close(checkpoints[index], checkpoints[0])
        torch.testing.assert_close(weights[index], weights[0])
        assert rows[index] == pytest.approx(rows[0])
        assert (tmp_path / name / "noise.png").read_bytes() == (tmp_path / "one" / "noise.png").read_bytes()
        assert timm.create_model(f"local-dir:{tmp_path}/{name}", pretrained=True).num_classes == 2


def last(folder):
    content = torch.load(folder / "last.ckpt", weights_only=True)
    assert "method.noise.noise" in content["state_dict"]
    (optimizer,) = content["optimizer_states"]
    rates = [group["lr"] for group in optimizer["param_groups"]]
    return [content["state_dict"], content["current_model_state"], optimizer["state"], rates, content["global_step"]]


def exported(folder):
    return load_file(folder / "model.safetensors")


def logged(folder):
    return {
        f"{name} at {row['step']}": float(value)
        for row in metrics(folder)
        for name, value in row.items()
        if value and name.startswith("val/")
    }


def test_batch_norm_is_refused():
    with pytest.raises(UserError, match="trainer=fsdp: Xcit has batch norm, .*: type trainer=ddp"):
        check_model(small("xcit_nano_12_p16_224", 32, XCIT))
    check_model(tiny_vit())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "trainer.precision=16-mixed",
            "trainer.precision=16-mixed: trainer=fsdp does not support it: choose 32-true",
        ),
        ("model.compile=true", "trainer=fsdp does not work with torch.compile: set model.compile=false"),
        ("trainer.strategy=fsdp", "trainer.strategy=fsdp cannot save the model: type trainer=fsdp"),
    ],
)
def test_what_does_not_work_is_refused_before_work_starts(monkeypatch, tmp_path, capsys, setting, message):
    settings = ["trainer=fsdp", *FAST[1:], setting, f"hydra.run.dir={tmp_path}"]
    assert cli_error(train, monkeypatch, capsys, *settings).startswith(f"error: {message}")
