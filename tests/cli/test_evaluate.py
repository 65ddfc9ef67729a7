"""evaluate.py run in this process, as a user would run it."""

import csv
import json
import os
import re
import shlex
import shutil
import signal

import numpy as np
import pytest
import torch
from PIL import ImageOps
from safetensors.torch import save_file
from torchvision.transforms.functional import to_tensor

from nsaug.cli import evaluate, train
from nsaug.corruptions import TEST_CORRUPTIONS
from nsaug.data import Digits
from nsaug.data.dataset import ImageSet, UnreadableImage
from nsaug.data.sources.imagenet import wnids
from nsaug.data.testsets.imagenet_variants import class_subset_indices
from nsaug.evaluation import EvalModel
from nsaug.models.factory import build_vit
from nsaug.models.weights import WEIGHTS, read_config
from tests.commands import FAST, SHORT, cli_error, hold_lock, run, top1
from tests.conftest import ROOT, place

pytestmark = pytest.mark.usefixtures("tmp_cwd")


SMALL = [
    "suite.attacks.fgsm.eps=[8/255]", "suite.attacks.pgd.eps=[8/255]", "suite.severities=[3]", "suite.max_images=30",
    "accelerator=cpu", "batch_size=16",
]  # fmt: skip
"""Settings that make suite=quick fast: clean, fgsm, pgd, gaussian_noise."""


def rows_of(folder, metric="top1"):
    """Rows of results.json by benchmark."""
    rows = json.loads((folder / "results.json").read_text())
    return {row["benchmark"]: row for row in rows if row["metric"] == metric}


def test_interrupted_evaluation_resumes(trained, monkeypatch, tmp_path, capsys):
    """Interrupted after its third block, run again, and run without a cache: all tables are the same."""
    from nsaug.evaluation import ResultCache

    saved, save = [], ResultCache.save

    def interrupted_save(self, key, title, result):
        if interrupt and len(saved) == 3:
            raise KeyboardInterrupt
        saved.append(title)
        save(self, key, title, result)

    monkeypatch.setattr(ResultCache, "save", interrupted_save)
    small = [*SMALL, f"checkpoint={trained}"]
    interrupt = True
    with pytest.raises(SystemExit, match="130"):
        run(evaluate, monkeypatch, *small, f"hydra.run.dir={tmp_path}/interrupted")
    output = capsys.readouterr()
    line = "stopped by Ctrl-C: finished blocks are in outputs/evaluate/cache; type the same command to continue"
    assert output.err.splitlines() == [line]
    interrupt = False
    for name in ("resumed", "again"):
        run(evaluate, monkeypatch, *small, f"hydra.run.dir={tmp_path}/{name}")
    assert len(saved) == 8, "two blocks of four benchmarks, none twice"
    run(evaluate, monkeypatch, *small, f"hydra.run.dir={tmp_path}/fresh", f"cache={tmp_path}/fresh_cache")
    tables = [(tmp_path / name / "results.csv").read_text() for name in ("resumed", "again", "fresh")]
    assert len(set(tables)) == 1


def test_failing_benchmark_is_reported_and_others_continue(trained, monkeypatch, tmp_path, capsys):
    from nsaug.attacks import FGSM

    monkeypatch.setattr(FGSM, "__call__", lambda *_: (_ for _ in ()).throw(RuntimeError("no such kernel")))
    with pytest.raises(SystemExit) as stop:
        run(evaluate, monkeypatch, *SMALL, f"checkpoint={trained}", f"hydra.run.dir={tmp_path}/eval")
    assert stop.value.code == 1
    output = capsys.readouterr()
    assert "nullspace, seed 0: fgsm 8/255 failed: RuntimeError: no such kernel" in output.out
    assert output.err.strip().startswith("error: 1 of 4 benchmarks failed (RuntimeError: no such kernel)")
    assert len(top1(tmp_path / "eval")) == 3
    assert "Failed benchmarks" in (tmp_path / "eval" / "report.html").read_text()
    assert "Traceback" not in output.out + output.err
    assert "in evaluate" in (tmp_path / "eval" / "evaluate.log").read_text(), "the log file has the traceback"


PAGE = (ROOT / "docs" / "evaluation.md").read_text()
CHANGES = re.findall(
    r"^python evaluate.py checkpoint=\.\.\. (.*)$",
    PAGE.partition("### Change a suite")[2].partition("| key |")[0],
    re.M,
)


@pytest.mark.parametrize("arguments", CHANGES)
def test_changes_of_a_suite_in_the_docs(trained, monkeypatch, tmp_path, arguments):
    folder = f"hydra.run.dir={tmp_path}/eval"
    small = [setting for setting in SMALL if setting.partition("=")[0] not in arguments]
    run(evaluate, monkeypatch, *small, f"checkpoint={trained}", folder, *shlex.split(arguments))
    names = {row["benchmark"] for row in json.loads((tmp_path / "eval" / "results.json").read_text())}
    assert {"clean", "pgd"} <= names
    for name, is_expected in (
        ("fgsm", "~suite.attacks.fgsm" not in arguments), ("pgd50", "pgd50" in arguments),
        ("fog", "fog" in arguments or "=all" in arguments), ("nullspace_noise", "nullspace_noise" in arguments),
        ("gaussian_noise", "fog" not in arguments),
    ):  # fmt: skip
        assert (name in names) == is_expected, name


def test_there_are_changes_in_the_docs():
    assert len(CHANGES) == 9


def test_score_names_benchmarks_of_the_suite(trained, monkeypatch, tmp_path, capsys):
    small = [*SMALL, f"checkpoint={trained}", f"hydra.run.dir={tmp_path}/eval"]
    line = cli_error(evaluate, monkeypatch, capsys, *small, "~suite.attacks.pgd")
    assert line.startswith("error: suite.score.pgd: the suite has no such benchmark, but clean, corruptions, fgsm")


def test_suite_of_the_users_own(trained, monkeypatch, tmp_path):
    """A suite in a --config-dir that extends one of nsaug."""
    (tmp_path / "conf" / "suite").mkdir(parents=True)
    (tmp_path / "conf" / "suite" / "mine.yaml").write_text(
        "defaults: [quick, _self_]\nmax_images: 20\nattacks:\n  pgd: {eps: [8/255]}\n"
        "  weak: {attack: pgd, num_steps: 1, eps: [1/255]}\n"
    )
    args = ["--config-dir", f"{tmp_path}/conf", "suite=mine", "accelerator=cpu", f"checkpoint={trained}"]
    run(evaluate, monkeypatch, *args, f"hydra.run.dir={tmp_path}/eval")
    rows = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert {row["benchmark"] for row in rows} == {"clean", "fgsm", "pgd", "gaussian_noise", "weak", "score"}
    assert {row["n"] for row in rows} == {20}


def test_dry_run_lists_what_would_be_done(trained, monkeypatch, tmp_path, capsys):
    small = [*SMALL, f"checkpoint={trained}", f"hydra.run.dir={tmp_path}/eval"]

    def unreadable(images, index):
        raise UnreadableImage("damaged")

    with monkeypatch.context() as patch:
        patch.setattr(ImageSet, "__getitem__", unreadable)
        run(evaluate, monkeypatch, *small, "dry_run=true")
    output = capsys.readouterr().out
    assert "about" in output
    assert "by the time of one batch" in output
    assert not (tmp_path / "outputs").exists(), "nothing is computed"
    run(evaluate, monkeypatch, *small)
    capsys.readouterr()
    run(evaluate, monkeypatch, *small, "dry_run=true")
    output = capsys.readouterr().out
    assert "everything is in the cache" in output
    (line,) = [line for line in output.splitlines() if "gaussian_noise" in line]
    assert [cell.strip() for cell in line.strip("│ ").split("│")] == ["gaussian_noise 3", "30", "2", "2"]


def test_shards_fill_the_cache_and_a_last_start_makes_the_tables(trained, monkeypatch, tmp_path, capsys):
    small = [*SMALL, f"checkpoint={trained}"]
    for index in range(3):
        run(evaluate, monkeypatch, *small, f"shard={index}/3", f"hydra.run.dir={tmp_path}/{index}")
        assert f"shard {index}/3 is done" in capsys.readouterr().out
        assert not (tmp_path / str(index) / "results.csv").exists()
    from nsaug.evaluation import ResultCache

    monkeypatch.setattr(ResultCache, "save", lambda *_: pytest.fail("everything is in the cache"))
    run(evaluate, monkeypatch, *small, f"hydra.run.dir={tmp_path}/eval")
    assert len(top1(tmp_path / "eval")) == 4
    for wrong in ("3/3", "1", "a/b", "-1/3", ""):
        line = cli_error(evaluate, monkeypatch, capsys, *small, f"shard={wrong}")
        assert line.startswith(f"error: shard={wrong}: type shard=INDEX/COUNT"), line


def test_cache_that_cannot_be_written_is_reported_before_work(trained, monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    line = cli_error(
        evaluate, monkeypatch, capsys, *SMALL, f"checkpoint={trained}", f"cache={tmp_path}/file",
        f"hydra.run.dir={tmp_path}/eval",
    )  # fmt: skip
    assert line.startswith(f"error: cache={tmp_path}/file cannot be written")


def test_report_on_a_full_disk_is_one_line(trained, monkeypatch, tmp_path, capsys):
    def full(file, **arrays):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    command = [f"checkpoint={trained}", "suite=clean", "accelerator=cpu", f"hydra.run.dir={tmp_path}/eval"]
    monkeypatch.setattr(np, "savez_compressed", full)
    line = cli_error(evaluate, monkeypatch, capsys, *command)
    assert line == (
        f"error: [Errno 28] No space left on device: '{tmp_path}/eval/results.npz'; finished blocks are in"
        " outputs/evaluate/cache; type the same command to continue"
    )
    assert list((tmp_path / "eval").glob(".*.tmp")) == []


def test_output_folder_of_another_process_is_refused_before_work(trained, monkeypatch, tmp_path, capsys):
    command = [f"checkpoint={trained}", "suite=clean", "accelerator=cpu", f"hydra.run.dir={tmp_path}/eval"]
    holder = hold_lock(tmp_path / "eval", "evaluate")
    try:
        line = cli_error(evaluate, monkeypatch, capsys, *command)
        run(evaluate, monkeypatch, *command, "shard=0/2")  # writes to the cache alone
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
    assert line.startswith(f"error: another process is writing to {tmp_path}/eval: ")
    assert not (tmp_path / "eval" / "results.csv").exists()
    run(evaluate, monkeypatch, *command)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("devices=99", "accelerator=gpu devices=99 cannot be used"),
        ("accelerator=quantum", "accelerator=quantum devices=1 cannot be used"),
        ("devices=0", "devices=0: should be greater than or equal to 1"),
        ("num_nodes=0", "num_nodes=0: should be greater than or equal to 1"),
        ("batch_size=0", "batch_size=0: should be greater than or equal to 1"),
        ("suite.attacks.pgd.num_stepz=3", "suite.attacks.pgd.num_stepz: no such setting; did you mean"),
        ("suite.attacks.pgd.num_steps=-1", "suite.attacks.pgd.num_steps=-1: should be greater than"),
        ("suite.max_imagez=3", "suite.max_imagez: no such setting; did you mean suite.max_images?"),
        ("+suite.max_imagez=3", "suite.max_imagez: no such setting; did you mean suite.max_images?"),
        ("suite.severities=[6]", "suite.severities"),
        ("suite.corruptions=[rain]", "suite.corruptions"),
        ("suite.attacks=null", "suite.attacks=null: should be a valid dictionary"),
        ("suite.datasets=[imagenet_x]", "suite.datasets.imagenet_x"),
        ("suite=null", "suite=null: no such choice; suite is one of attacks, cifar10, "),
    ],
)
def test_wrong_settings_are_one_line(trained, monkeypatch, tmp_path, capsys, argument, message):
    accelerator = "gpu" if argument == "devices=99" else "cpu"
    line = cli_error(
        evaluate, monkeypatch, capsys, f"accelerator={accelerator}", f"checkpoint={trained}",
        f"hydra.run.dir={tmp_path}/eval", argument,
    )  # fmt: skip
    assert line.startswith(f"error: {message}"), line


def test_last_checkpoint_of_a_crashed_run(monkeypatch, tmp_path, capsys):
    from nsaug.training.lightning_module import Finetuner

    training_step = Finetuner.training_step

    def crashing_step(self, batch, batch_idx):
        if self.current_epoch == 1:
            raise RuntimeError("power cut")
        return training_step(self, batch, batch_idx)

    monkeypatch.setattr(Finetuner, "training_step", crashing_step)
    settings = [*FAST, "trainer.max_epochs=2", "method=clean", f"hydra.run.dir={tmp_path}/run"]
    assert "RuntimeError: power cut" in cli_error(train, monkeypatch, capsys, *settings)
    run(evaluate, monkeypatch, *SMALL, f"hydra.run.dir={tmp_path}/eval", f"checkpoint={tmp_path}/run/last.ckpt")
    assert len(top1(tmp_path / "eval")) == 4


def test_evaluating_the_moving_average_is_logged(monkeypatch, tmp_path, capsys):
    run(train, monkeypatch, *SHORT, "method=clean", "ema=0.9", f"hydra.run.dir={tmp_path}/run")
    run(evaluate, monkeypatch, *SMALL, f"hydra.run.dir={tmp_path}/eval", f"checkpoint={tmp_path}/run")
    assert "evaluating the moving average of its weights (ema=0.9)" in capsys.readouterr().out


def test_model_with_another_number_of_classes_is_refused(monkeypatch, tmp_path, capsys):
    line = cli_error(
        evaluate, monkeypatch, capsys, "model=micro", "data=digits", f"hydra.run.dir={tmp_path}", "accelerator=cpu"
    )
    assert "has 1000 classes, the data set has 10: finetune it first" in line


def test_suite_corruptions(trained, monkeypatch, tmp_path, capsys):
    pytest.importorskip("imagecorruptions", reason="needs the extra corruptions")
    run(
        evaluate, monkeypatch, "suite=corruptions", f"checkpoint={trained}", "accelerator=cpu", "suite.max_images=40",
        "suite.severities=[5]", f"hydra.run.dir={tmp_path}/eval", f"cache={tmp_path}/cache",
    )  # fmt: skip
    with open(tmp_path / "eval" / "results.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["condition"] == "corrupted" and row["metric"] == "top1"]
    assert len(rows) == 15
    assert "jpeg_compression 5" in capsys.readouterr().out


def test_suite_nullspace(trained, monkeypatch, tmp_path, capsys):
    run(
        evaluate, monkeypatch, "suite=nullspace", f"checkpoint=[{trained},{trained}/last.ckpt]", "accelerator=cpu",
        "suite.analyses.noise.num_noises=2", "suite.analyses.noise.num_images=40",
        "suite.analyses.radius.num_images=40",
        "suite.analyses.transfer.num_images=40", "suite.analyses.noise.synthesis.num_passes=2",
        "suite.analyses.radius.num_noises=1", "suite.analyses.radius.num_updates=4", "suite.analyses.radius.eps=[0.05]",
        f"hydra.run.dir={tmp_path}/eval", f"cache={tmp_path}/cache",
    )  # fmt: skip
    output = capsys.readouterr().out
    for text in ("agreement, permuted within", "radius, random, 0.05", "influence, from", "nullity, exact"):
        assert text in output
    assert "Analysis of nullspace noise" in (tmp_path / "eval" / "report.html").read_text()
    with open(tmp_path / "eval" / "results.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["condition"] == "learned"]
    assert {row["over"] for row in rows} == {"noises"}
    assert {row["n"] for row in rows} == {"20"}


@pytest.mark.slow
def test_pretrained_timm_model(monkeypatch, tmp_path, imagenet):
    run(
        evaluate, monkeypatch, "model=vit_ti", "model.pretrained=false", f"data.root={imagenet}", "suite.max_images=8",
        "batch_size=4", f"hydra.run.dir={tmp_path}", "accelerator=cpu",
    )  # fmt: skip
    assert len(top1(tmp_path)) == 9


@pytest.fixture
def evaluate_imagenet(sample, monkeypatch, tmp_path):
    """A function that runs evaluate.py on a small model of 1,000 classes and 1,000 real images; returns top-1 rows."""
    args = {"depth": 1, "embed_dim": 24, "num_heads": 2}
    torch.manual_seed(0)
    save_file(build_vit("vit_tiny_patch16_224", num_classes=1000, args=args).state_dict(), tmp_path / "vit.safetensors")
    monkeypatch.setenv("NSAUG_DATA", str(tmp_path / "data"))

    def evaluate_with(*arguments):
        run(
            evaluate, monkeypatch, "model=vit_ti", "model.args={depth: 1, embed_dim: 24, num_heads: 2}",
            "accelerator=cpu",
            f"checkpoint={tmp_path}/vit.safetensors", f"data.root={sample[0].parents[2]}", "data.num_workers=0",
            f"hydra.run.dir={tmp_path}/eval", *arguments,
        )  # fmt: skip
        rows = json.loads((tmp_path / "eval" / "results.json").read_text())
        return {row["benchmark"]: row for row in rows if row["metric"] == "top1"}

    return evaluate_with


def test_missing_data_sets_are_skipped_and_reported(evaluate_imagenet, sample, tmp_path, capsys):
    for label in class_subset_indices("imagenet_a")[:30]:
        place(sample[label], tmp_path / "data" / "imagenet-a" / wnids()[label] / "x.jpg")
    broken = tmp_path / "data" / "imagenet-a" / wnids()[class_subset_indices("imagenet_a")[4]] / "x.jpg"
    broken.write_bytes(broken.read_bytes()[:500])
    rows = evaluate_imagenet("suite=shift", "suite.max_images=100")
    assert list(rows) == ["clean", "clean_imagenet_a", "clean_imagenet_r", "imagenet_a"]
    assert [rows[name]["n"] for name in rows] == [100, 100, 100, 29]
    assert rows["imagenet_a"]["notes"].split("; ") == [
        "170 of 200 classes have no images (n01985128, n01986214, n02007558, ...)",
        "30 of 7,500 images are there", "predictions restricted to 200 classes",
        f"1 of 30 images cannot be read ({wnids()[class_subset_indices('imagenet_a')[4]]}/x.jpg)",
    ]  # fmt: skip
    report = (tmp_path / "eval" / "report.html").read_text()
    output = capsys.readouterr().out
    for text in (output, report, (tmp_path / "eval" / "results.md").read_text()):
        assert "predictions restricted to 200 classes" in text
        assert "clean: 100 of 1,000 images, drawn with seed 0" in text
        assert f"skipped: imagenet_r: ImageNet-R: there is no folder {tmp_path}/data/imagenet-r; it is" in text
        assert "https://github.com/hendrycks/imagenet-r" in text


def test_attacks_on_a_shifted_data_set(evaluate_imagenet, sample, tmp_path, capsys):
    for label in class_subset_indices("imagenet_a")[::20]:
        place(sample[label], tmp_path / "data" / "imagenet-a" / wnids()[label] / "x.jpg")
    where = f"data.root={tmp_path}/data/imagenet-a"
    rows = evaluate_imagenet("data=imagenet_a", where, "suite.attacks.pgd.num_steps=2")
    assert {"clean", "pgd", "gaussian_noise"} <= set(rows)
    assert all("predictions restricted to 200 classes" in row["notes"] and row["n"] == 10 for row in rows.values())
    real = tmp_path / "real" / "val" / wnids()[0] / "ILSVRC2012_val_00000002.JPEG"
    place(sample[0], real)
    with pytest.raises(SystemExit):
        evaluate_imagenet("data=imagenet_real", f"data.root={tmp_path}/real")
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: fgsm: attacks need one label per image, this data set has sets")


def test_require_data_refuses_missing_data_sets(evaluate_imagenet, capsys, tmp_path):
    with pytest.raises(SystemExit):
        evaluate_imagenet("suite=shift", "suite.require_data=true")
    line = capsys.readouterr().err.strip()
    assert line.startswith("error: ReaL: labels belong to names such as ILSVRC2012_val_00000001.JPEG, and")
    assert f"; DAmageNet: there is no folder {tmp_path}/data/DAmageNet; it is published at https://" in line
    assert line.endswith("(suite.require_data=false skips them)")
    assert "\n" not in line


@pytest.mark.slow
def test_stored_corruptions_beside_those_on_the_fly(evaluate_imagenet, sample, tmp_path):
    pytest.importorskip("imagecorruptions", reason="needs the extra corruptions")
    labels = [6, 1, 300, 999]  # 6 is in ImageNet-A, 1 in ImageNet-R
    for label in labels:
        for severity in "12345":
            for name in TEST_CORRUPTIONS:
                place(
                    sample[label], tmp_path / "data" / "imagenet-c" / name / severity / wnids()[label]
                    / sample[label].name, size=224,
                )  # fmt: skip
    slow = ("fgsm_rs", "pgd_margin", "mifgsm", "autoattack", "deepfool", "cw", "patch_fool", "mifgsm_transfer")
    drop = [f"~suite.attacks.{name}" for name in slow]
    names = tmp_path / "list.txt"
    names.write_text("".join(f"{sample[label].name}\n" for label in labels))
    rows = evaluate_imagenet(
        "suite=imagenet", *drop, f"suite.image_list={names}", "suite.attacks.pgd.eps=[1/255]",
        "suite.noise.nullspace_noise.init_scale=[1]", "suite.attacks.pgd_l2.num_steps=1",
    )  # fmt: skip
    assert rows["clean"]["n"] == rows["imagenet_c_fog"]["n"] == rows["fog"]["n"] == 4
    assert "stored" in rows["imagenet_c_fog"]["notes"]
    assert rows["fog"]["notes"].split("; ") == [
        "generated on the fly", "1,000 of 50,000 images are there", "4 images of the 4 in list.txt",
    ]  # fmt: skip
    metrics = {row["metric"] for row in json.loads((tmp_path / "eval" / "results.json").read_text())}
    expected = {"mCE", "relative_mCE", "mean_corruption_error"}
    assert expected | {f"{name}_on_the_fly" for name in expected} <= metrics


def test_suite_with_other_classes_is_refused(trained, monkeypatch, tmp_path, capsys, sample):
    place(sample[0], tmp_path / "data" / "imagenet-sketch" / wnids()[0] / "x.jpg")
    monkeypatch.setenv("NSAUG_DATA", str(tmp_path / "data"))
    with pytest.raises(SystemExit):
        run(evaluate, monkeypatch, "suite=shift", f"checkpoint={trained}", f"hydra.run.dir={tmp_path}/eval")
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line == (
        "error: clean_imagenet_a restricts predictions to classes up to 988, and nullspace, seed 0 has 10: choose"
        " another suite, or remove it from the suite"
    )


def test_data_with_other_classes_is_refused(trained, monkeypatch, tmp_path, capsys, sample):
    place(sample[0], tmp_path / "data" / "imagenet-sketch" / wnids()[0] / "x.jpg")
    monkeypatch.setenv("NSAUG_DATA", str(tmp_path / "data"))
    suite = ["suite=clean", "suite.datasets=[imagenet_sketch]", f"checkpoint={trained}"]
    line = cli_error(evaluate, monkeypatch, capsys, *suite, f"hydra.run.dir={tmp_path}/eval")
    assert line.startswith("error: imagenet_sketch has 1,000 classes such as n01440764, nullspace, seed 0 has 10")


def test_benchmark_with_a_folder_of_the_users_own(trained, monkeypatch, tmp_path, capsys):
    """Inverted digits, in folders."""
    digits = Digits().test_dataset()
    digits.setup("test")
    for index in range(0, 60):
        folder = tmp_path / "inverted" / "val" / str(digits.images.labels[index])
        folder.mkdir(parents=True, exist_ok=True)
        ImageOps.invert(digits.images.load(index)).save(folder / f"{index}.png")
    run(
        evaluate, monkeypatch, f"checkpoint={trained}", "accelerator=cpu", f"hydra.run.dir={tmp_path}/eval",
        "+suite.benchmarks.inverted={_target_: nsaug.evaluation.Clean,"
        f" data: {{_target_: nsaug.data.Folder, root: {tmp_path}/inverted}}}}", "suite=clean",
    )  # fmt: skip
    rows = json.loads((tmp_path / "eval" / "results.json").read_text())
    by_name = {row["benchmark"]: row for row in rows if row["metric"] == "top1"}
    assert (by_name["inverted"]["n"], by_name["inverted"]["condition"]) == (60, "shifted")
    vit = build_vit(**EvalModel(str(trained / WEIGHTS), read_config(trained), {}, "").build_args()).eval()
    images = torch.stack([to_tensor(ImageOps.invert(digits.images.load(index))) for index in range(60)])
    correct = vit(images).argmax(1) == torch.tensor(digits.images.labels[:60])
    assert by_name["inverted"]["value"] == pytest.approx(correct.float().mean().item())


def test_validation_split(monkeypatch, tmp_path, capsys, trained):
    small = ["suite=clean", "accelerator=cpu", "batch_size=999"]
    run(evaluate, monkeypatch, f"checkpoint={trained}", "split=val", f"hydra.run.dir={tmp_path}/val", *small)
    assert "128 validation images" in capsys.readouterr().out
    data = Digits()
    data.setup("fit")
    with np.load(next((tmp_path / "outputs").rglob("*.npz"))) as cached:
        assert set(json.loads(str(cached["meta"]))["ids"]) == set(data.val_set.ids)
    line = cli_error(evaluate, monkeypatch, capsys, f"checkpoint={trained}", "split=train")
    assert "split" in line


def test_validation_images_that_training_did_not_hold_out(monkeypatch, tmp_path, capsys, trained):
    line = cli_error(evaluate, monkeypatch, capsys, f"checkpoint={trained}", "split=val", "+data.val_fraction=0.5")
    assert line == (
        "error: split=val: nullspace, seed 0 held out other images (727 validation images instead of 128), so that some"
        " of these may have been trained on: restore the images and data.val_fraction, or choose split=test"
    )
    line = cli_error(
        evaluate, monkeypatch, capsys, f"checkpoint={trained}", "split=val", "data=digits", "data.val_fraction=0.2"
    )
    assert "held out other images" in line, "also where data= names the data that the run was trained on"


def test_splits_of_a_run_without_data_are_not_compared():
    evaluate.check_validation_split("digits", None, EvalModel(None, None, {"splits": {}}, "run"))


def test_validation_split_of_a_run_without_one(monkeypatch, tmp_path, capsys, trained):
    line = cli_error(
        evaluate, monkeypatch, capsys, f"checkpoint={trained}", "split=val", "data=digits", "data.val_fraction=0"
    )
    assert "split=val: the run has no validation images (data.val_fraction=0)" in line


def test_earlier_evaluations_are_compared_without_checkpoints(trained, monkeypatch, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    config["nsaug"]["seed"] = 1
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    for name, run_folder in (("a", trained), ("b", tmp_path / "other")):
        run(evaluate, monkeypatch, *SMALL, f"checkpoint={run_folder}", f"hydra.run.dir={tmp_path}/{name}")
    shutil.rmtree(tmp_path / "other")
    run(evaluate, monkeypatch, f"compare=[{tmp_path}/a,{tmp_path}/b]", f"hydra.run.dir={tmp_path}/both")
    rows = json.loads((tmp_path / "both" / "results.json").read_text())
    assert {row["seed"] for row in rows} == {0, 1}
    single = json.loads((tmp_path / "a" / "results.json").read_text())
    first = [(row["benchmark"], row["metric"], row["value"]) for row in rows if row["seed"] == 0]
    assert first == [(row["benchmark"], row["metric"], row["value"]) for row in single]
    assert (tmp_path / "both" / "report.html").exists()
    line = cli_error(evaluate, monkeypatch, capsys, f"compare=[{tmp_path}/a,{tmp_path}/nowhere]")
    assert f"{tmp_path}/nowhere" in line


def test_weights_without_class_names_are_noted(trained, monkeypatch, tmp_path, capsys):
    shutil.copy(trained / "model.safetensors", tmp_path / "weights.safetensors")
    run(
        evaluate, monkeypatch, "suite=clean", "suite.max_images=30", f"checkpoint={tmp_path}/weights.safetensors",
        "model=micro", "data=digits", "accelerator=cpu", f"hydra.run.dir={tmp_path}/eval",
    )  # fmt: skip
    assert "the weights name no classes: the order of classes 0, 1, 2, ... is assumed" in capsys.readouterr().out


def test_class_names_of_transformers(monkeypatch, tmp_path, capsys):
    settings = {"name": "vit_tiny_patch16_224", "args": {"embed_dim": 24, "depth": 1}}
    save_file(
        build_vit(num_classes=10, img_size=8, patch_size=4, **settings).state_dict(), tmp_path / "model.safetensors"
    )
    arguments = [
        "suite=clean", "suite.max_images=30", f"checkpoint={tmp_path}", "model=timm", f"model.name={settings['name']}",
        "model.args={embed_dim: 24, depth: 1}", "data=digits", "data.num_workers=0", "accelerator=cpu",
    ]  # fmt: skip

    def write_config(names):
        config = {"model_type": "vit", "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
        (tmp_path / "config.json").write_text(json.dumps(config | {"id2label": dict(enumerate(names))}))

    write_config([f"digit {index}" for index in range(10)])
    run(evaluate, monkeypatch, *arguments, f"hydra.run.dir={tmp_path}/eval")
    note = "the classes of the weights (digit 0, digit 1, digit 2, ...) and of the data (0, 1, 2, ...) have other names"
    assert f"{note}: the same order is assumed" in capsys.readouterr().out
    write_config(["1", "0", *"23456789"])
    line = cli_error(evaluate, monkeypatch, capsys, *arguments)
    assert "the classes in its config.json (1, 0, 2, ...) have another order than those of the data (0, 1, 2," in line
    line = cli_error(evaluate, monkeypatch, capsys, "suite=clean", f"checkpoint={tmp_path}", "data=digits")
    assert "model.safetensors has no config.json of nsaug or timm beside it: add model=... and data=..." in line


@pytest.mark.parametrize("setting", ["model=micro", "+model.mean=[0.1,0.1,0.1]", "+model.args={depth: 1}"])
def test_settings_of_a_model_that_is_described_elsewhere_are_refused(trained, monkeypatch, tmp_path, capsys, setting):
    small = ["suite=clean", f"checkpoint={trained}", "accelerator=cpu", "data=digits"]
    line = cli_error(evaluate, monkeypatch, capsys, *small, setting)
    name = setting.partition("=")[0].removeprefix("+")
    assert f"has no effect, because {trained}/config.json describes the model: leave it out" in line
    assert line.startswith(f"error: {name}")


def test_settings_of_the_recorded_data_can_be_changed(trained, monkeypatch, tmp_path, capsys):
    small = ["suite=clean", "suite.max_images=20", f"checkpoint={trained}", "accelerator=cpu"]
    run(evaluate, monkeypatch, *small, "data.num_workers=0", f"hydra.run.dir={tmp_path}/eval")
    line = cli_error(evaluate, monkeypatch, capsys, *small, "data.num_workerz=0")
    assert "nsaug.data.args.num_workerz: no such setting" in line
