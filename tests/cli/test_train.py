"""train.py as a user runs it, mostly in this process."""

import json
import re
import shutil
import socket
import subprocess
import sys
import tarfile

import pytest
import timm
import torch
import wandb
from PIL import Image
from safetensors.torch import load_file

from nsaug.cli import evaluate, train
from nsaug.models.weights import read_metadata
from tests.commands import FAST, SHORT, cli_error, metrics, run, top1
from tests.conftest import ROOT, SHARED

pytestmark = pytest.mark.usefixtures("tmp_cwd")


def test_weights_load_in_timm_and_evaluate(capsys, trained, monkeypatch, tmp_path):
    model = timm.create_model(f"local-dir:{trained}", pretrained=True)
    checkpoint = torch.load(trained / "last.ckpt", weights_only=True)
    for key, value in model.state_dict().items():
        assert torch.equal(checkpoint["state_dict"][f"vit.{key}"], value), key
    metadata = json.loads((trained / "config.json").read_text())["nsaug"]
    assert (metadata["name"], metadata["method"], metadata["seed"]) == ("nullspace", "nullspace", 0)

    logged = {name for row in metrics(trained) for name, value in row.items() if value}
    assert {"train/influence_before", "train/influence", "train/converged", "train/lr"} <= logged
    assert {"val/top1", "val/adv_top1", "val/loss"} <= logged
    log = (trained / "train.log").read_text()
    assert re.search(r"val top-1 [\d.]+ %, under PGD \(eps 4/255\) [\d.]+ %, noise", log)

    small = [
        "suite.attacks.fgsm.eps=[8/255]",
        "suite.attacks.pgd.eps=[8/255]",
        "suite.severities=[3]",
        "suite.max_images=100",
    ]
    twice = f"checkpoint=[{trained},{trained}/last.ckpt]"  # the same weights
    run(evaluate, monkeypatch, *small, "accelerator=cpu", twice, f"hydra.run.dir={tmp_path}/eval")
    accuracies = top1(tmp_path / "eval")
    assert len(accuracies) == 2 * 4
    assert accuracies[:4] == accuracies[4:]
    reports = ["results.png", "results.md", "groups.csv", "comparisons.csv", "report.html"]
    assert all((tmp_path / "eval" / report).stat().st_size > 100 for report in reports)
    assert "100 test images" in capsys.readouterr().out


def test_training_starts_from_the_checkpoint(trained, monkeypatch, tmp_path):
    run(
        train, monkeypatch, *SHORT, f"checkpoint={trained}", "method=clean", "optim.lr=1e-12", "optim.weight_decay=0",
        f"hydra.run.dir={tmp_path}/again", "name=again", "seed=5",
    )  # fmt: skip
    first, second = (timm.create_model(f"local-dir:{f}", pretrained=True) for f in (trained, tmp_path / "again"))
    for key, value in first.state_dict().items():
        torch.testing.assert_close(second.state_dict()[key], value, atol=1e-6, rtol=0)
    metadata = json.loads((tmp_path / "again" / "config.json").read_text())["nsaug"]
    assert (metadata["name"], metadata["method"], metadata["seed"]) == ("again", "clean", 5)


def test_same_seed_same_weights(monkeypatch, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(train, monkeypatch, *SHORT, f"seed={seed}", f"hydra.run.dir={tmp_path}/{name}")
    heads = [timm.create_model(f"local-dir:{tmp_path}/{name}", pretrained=True).head.weight for name in "abc"]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


@pytest.mark.parametrize(
    "options",
    [
        ["nullspace=per_batch"],
        ["method=clean", "save=best", "trainer.max_steps=-1", "trainer.max_epochs=2"],
        ["trainer.precision=bf16-mixed"],
        ["model.drop_path_rate=0.1"],
        ["trainer.accumulate_grad_batches=2"],
        ["data.val_fraction=0", "attack=fgsm"],
        ["model.img_size=16", "model.patch_size=4"],
    ],
)
def test_options_compose(monkeypatch, tmp_path, options):
    run(train, monkeypatch, *SHORT, *options, f"hydra.run.dir={tmp_path}")
    assert (tmp_path / "model.safetensors").exists()


def test_multirun_has_a_folder_per_run_and_one_group(monkeypatch, tmp_path):
    started, init = [], wandb.init
    monkeypatch.setattr(wandb, "init", lambda **options: started.append(options) or init(**options))
    run(
        train, monkeypatch, "-m", *FAST, "trainer.max_steps=1", "nullspace.eps=0.01,0.1", "logger=wandb",
        "logger.wandb=offline", f"hydra.sweep.dir={tmp_path}/sweep",
    )  # fmt: skip
    folders = sorted(path.parent for path in (tmp_path / "sweep").glob("*/model.safetensors"))
    assert [folder.name for folder in folders] == ["0_eps-0.01", "1_eps-0.1"]
    runs = [list((folder / "wandb").glob("offline-run-*")) for folder in folders]
    assert [len(records) for records in runs] == [1, 1]
    assert [options["group"] for options in started] == ["sweep", "sweep"]
    assert [options["name"] for options in started] == ["nullspace-eps0.01-s0", "nullspace-eps0.1-s0"]
    assert [options["config"]["nullspace"]["eps"] for options in started] == [0.01, 0.1]
    assert wandb.run is None, "the last one is finished, too"


def test_sweep_over_checkpoints(monkeypatch, tmp_path, trained):
    run(
        train, monkeypatch, "-m", *FAST, "trainer.max_steps=1", "method=clean", f"checkpoint={trained},null",
        f"hydra.sweep.dir={tmp_path}/sweep",
    )  # fmt: skip
    folders = sorted((tmp_path / "sweep").glob("*/"))
    assert folders[1].name == "1_checkpoint-null"
    assert [read_metadata(folder)["settings"]["start"] for folder in folders] == ["nullspace", None]


def test_noise_images_are_saved(monkeypatch, tmp_path):
    run(train, monkeypatch, *SHORT, "logger.num_images=4", f"hydra.run.dir={tmp_path}")
    with Image.open(tmp_path / "noise.png") as grid:
        assert grid.width > grid.height > 3 * 64


def test_missing_data_or_weights_are_one_line(monkeypatch, tmp_path, capsys, imagenet):
    monkeypatch.setenv("NSAUG_DATA", str(tmp_path))
    where = f"hydra.run.dir={tmp_path}/run"
    line = cli_error(train, monkeypatch, capsys, "model=vit_s", "nullspace.eps=0.05", where)
    assert line.startswith(
        f"error: data.root={tmp_path}/imagenet does not exist: type data.root=PATH, a folder that contains"
    )
    small = [f"data.root={imagenet}", "data.val_fraction=0.25"]
    line = cli_error(train, monkeypatch, capsys, "model=vit_s", "nullspace.eps=0.05", where, *small)
    assert "weights of vit_small_patch16_224.augreg_in21k_ft_in1k cannot be downloaded" in line
    assert "checkpoint=PATH" in line
    assert "model.pretrained=false" in line


def test_wrong_settings_are_one_line(monkeypatch, tmp_path, capsys):
    where = f"hydra.run.dir={tmp_path}/run"
    assert cli_error(train, monkeypatch, capsys, where, "nullspace.eps=9").endswith("should be less than 2")
    assert "did you mean nullspace.eps" in cli_error(train, monkeypatch, capsys, where, "nullspace.esp=0.1")
    assert "no such choice" in cli_error(train, monkeypatch, capsys, where, "method=nothing")
    line = cli_error(train, monkeypatch, capsys, where, "save=best", "data.val_fraction=0")
    assert line.startswith("error: save=best needs validation images")
    assert "does not exist" in cli_error(evaluate, monkeypatch, capsys, where, "checkpoint=nowhere")
    assert "no model to evaluate" in cli_error(evaluate, monkeypatch, capsys, where)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_missing_device_is_one_line(monkeypatch, tmp_path, capsys):
    line = cli_error(train, monkeypatch, capsys, f"hydra.run.dir={tmp_path}", "trainer=gpu", "logger=csv")
    assert line == "error: trainer: No supported gpu backend found!"


def test_failed_run_does_not_stop_a_multirun(monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run(
            train, monkeypatch, "-m", *FAST, "trainer.max_steps=1", "nullspace.eps=9,0.1",
            f"hydra.sweep.dir={tmp_path}", "hydra.sweep.subdir=${hydra:job.num}",
        )  # fmt: skip
    assert stop.value.code == 1
    assert not (tmp_path / "0" / "model.safetensors").exists()
    assert (tmp_path / "1" / "model.safetensors").exists()


@pytest.mark.slow
def test_multirun_in_processes(monkeypatch, tmp_path, capsys):
    """The local executor of hydra-submitit-launcher runs what a Slurm job would: one run fails, one trains."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    monkeypatch.chdir(ROOT)
    arguments = [
        "-m", "hydra/launcher=processes", *FAST, "trainer.max_steps=1", "nullspace.eps=9,0.1",
        f"hydra.sweep.dir={tmp_path}", "hydra.sweep.subdir=${nullspace.eps}",
    ]  # fmt: skip
    done = subprocess.run([sys.executable, "train.py", *arguments], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == "error: nullspace.eps=9: should be less than 2"
    assert not (tmp_path / "9" / "model.safetensors").exists()
    assert (tmp_path / "0.1" / "model.safetensors").exists()


def test_slurm_without_srun_is_one_line(monkeypatch, tmp_path, capsys):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    monkeypatch.setenv("PATH", "/nowhere")
    line = cli_error(
        train, monkeypatch, capsys, "-m", "hydra/launcher=slurm", "seed=0,1", f"hydra.sweep.dir={tmp_path}"
    )
    assert line.startswith("error: hydra/launcher=slurm: srun is not installed")


def test_identical_views_are_warned_about(monkeypatch, tmp_path, capsys):
    run(train, monkeypatch, *SHORT, "method=clean_two_views", f"hydra.run.dir={tmp_path}")
    assert "clean_two_views: identical views" in capsys.readouterr().out


def test_train_on_imagenet_images(monkeypatch, tmp_path, imagenet):
    """A small ViT at 64 px on real images; ViT-S at 224 px is the slow test below."""
    run(
        train, monkeypatch, *SHORT, "model=vit_ti", f"data.root={imagenet}", "data.num_workers=0",
        "data.val_fraction=0.25", "data.batch_size=4", "model.pretrained=false",
        "model.img_size=64", "model.args={depth: 2}", f"hydra.run.dir={tmp_path}",
    )  # fmt: skip
    assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True).num_classes == 1000


@pytest.mark.slow
def test_vit_s_trains_at_224_px(monkeypatch, tmp_path, imagenet):
    run(
        train, monkeypatch, *FAST, "trainer.max_steps=2", "model=vit_s", f"data.root={imagenet}", "data.batch_size=4",
        "data.val_fraction=0.25", "model.pretrained=false", f"hydra.run.dir={tmp_path}",
    )  # fmt: skip
    assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True).num_classes == 1000


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        *("clean", "clean_two_views", "clean_same_compute", "nullspace", "random_noise", "pgd", "fgsm_rs", "trades"),
        *("embedding_pgd", "freelb", "smart", "r3f", "augmix", "gaussian_noise", "r_drop model.drop_path_rate=0.1"),
    ],
)
def test_methods_train_vit_s_on_imagenet(monkeypatch, tmp_path, imagenet, method):
    run(
        train, monkeypatch, *FAST, "trainer.max_steps=1", "model=vit_s", *f"method={method}".split(),
        f"data.root={imagenet}", "data.batch_size=2", "data.val_fraction=0.3", "model.pretrained=false",
        f"hydra.run.dir={tmp_path}",
    )  # fmt: skip
    assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True).num_classes == 1000


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["cifar10_pretrain", "cifar10_pretrain_cpu", "cifar10_finetune"])
def test_cifar10_experiments_train(monkeypatch, tmp_path, experiment):
    archive = SHARED / "cifar10.tar.xz"
    if not archive.is_file():
        pytest.skip(f"no real CIFAR-10 images at {archive} (set NSAUG_SHARED)")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    run(
        train, monkeypatch, *FAST, f"experiment={experiment}", "trainer.max_steps=3", "data.num_workers=0",
        f"data.root={tmp_path}/cifar10", "data.batch_size=8", "data.val_fraction=0.001",
        f"hydra.run.dir={tmp_path}/run",
    )  # fmt: skip
    assert timm.create_model(f"local-dir:{tmp_path}/run", pretrained=True).num_classes == 10


def test_torchrun_needs_an_output_folder(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    line = cli_error(train, monkeypatch, capsys, *FAST, "trainer=multi_node")
    assert "add hydra.run.dir=outputs/train/NAME, the same for all" in line
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert "add hydra.run.dir" in cli_error(train, monkeypatch, capsys, *FAST)


@pytest.mark.slow
def test_two_nodes_of_one_process(tmp_path):
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    settings = [*SHORT[1:], "trainer=multi_node", "trainer.accelerator=cpu", "trainer.devices=1", "hydra.run.dir=run"]
    nodes = []
    for rank in range(2):
        machine = ["--nnodes=2", f"--node-rank={rank}", "--master-addr=127.0.0.1", f"--master-port={port}"]
        command = [sys.executable, "-m", "torch.distributed.run", *machine, str(ROOT / "train.py"), *settings]
        nodes.append(subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True))
    errors = [node.communicate(timeout=300)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], errors
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.slow
def test_compiled_run_equals_eager_run(monkeypatch, tmp_path):
    """With the default backend of torch.compile."""
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("no C++ compiler")
    weights = []
    for compile in (False, True):
        folder = tmp_path / str(compile)
        settings = [*FAST, "trainer.max_epochs=1", f"model.compile={compile}", f"hydra.run.dir={folder}"]
        run(train, monkeypatch, *settings)
        weights.append(load_file(folder / "model.safetensors"))
    torch.testing.assert_close(weights[1], weights[0], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("settings", [["hydra.run.dir={}/below"], ["-m", "seed=0,1", "hydra.sweep.dir={}/below"]])
def test_unwritable_output_folder_is_one_line(monkeypatch, tmp_path, capsys, settings):
    (tmp_path / "file").write_text("")
    line = cli_error(train, monkeypatch, capsys, *[text.format(tmp_path / "file") for text in settings], *FAST)
    assert "the output folder cannot be written (" in line
