"""evaluate.py run in this process, as a user would run it."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import ImageOps
from safetensors.torch import save_file

from nsaug.cli import evaluate, train
from nsaug.corruptions import TEST_CORRUPTIONS
from nsaug.data import Digits
from nsaug.data.sources.imagenet import wnids
from nsaug.data.testsets.imagenet_variants import class_subset_indices
from nsaug.models.factory import build_vit
from tests.commands import FAST, SHORT, cli_error, run, top1
from tests.conftest import place

pytestmark = pytest.mark.usefixtures("tmp_cwd")


def test_interrupted_evaluation_resumes(trained, monkeypatch, tmp_path):
    """Interrupted in its second benchmark, run again, and run without a cache: all tables are the same."""
    from nsaug.evaluation import Benchmark

    done, original_run = [], Benchmark.run
    small = ["suite.eps=[8/255]", "suite.std=[0.1]", "suite.max_images=30", "device=cpu", f"checkpoint={trained}"]

    def interrupted_run(self, *args, **kwargs):
        if len(done) == 1 and interrupt:
            raise KeyboardInterrupt
        done.append(self.condition)
        return original_run(self, *args, **kwargs)

    monkeypatch.setattr(Benchmark, "run", interrupted_run)
    interrupt = True
    with pytest.raises(SystemExit, match="130"):
        run(evaluate, monkeypatch, *small, f"hydra.run.dir={tmp_path}/interrupted")
    assert "clean" in (tmp_path / "interrupted" / "results.csv").read_text(), "finished rows are written"
    interrupt = False
    for name in ("resumed", "again"):
        run(evaluate, monkeypatch, *small, f"hydra.run.dir={tmp_path}/{name}")
    assert done == ["clean", "attacked", "attacked", "corrupted"]
    run(evaluate, monkeypatch, *small, f"hydra.run.dir={tmp_path}/fresh", f"cache={tmp_path}/fresh_cache")
    tables = [(tmp_path / name / "results.csv").read_text() for name in ("resumed", "again", "fresh")]
    assert len(set(tables)) == 1


def test_failing_benchmark_is_reported_and_others_continue(trained, monkeypatch, tmp_path, capsys):
    from nsaug.attacks import FGSM

    monkeypatch.setattr(FGSM, "__call__", lambda *_: (_ for _ in ()).throw(RuntimeError("no such kernel")))
    small = ["suite.eps=[8/255]", "suite.std=[0.1]", "suite.max_images=30", "device=cpu", f"checkpoint={trained}"]
    with pytest.raises(SystemExit) as stop:
        run(evaluate, monkeypatch, *small, f"hydra.run.dir={tmp_path}/eval")
    assert stop.value.code == 1
    output = capsys.readouterr()
    assert "nullspace, seed 0: fgsm failed: RuntimeError: no such kernel" in output.out
    assert output.err.strip().startswith("error: 1 of 4 benchmarks failed")
    assert len(top1(tmp_path / "eval")) == 3
    assert "Failed benchmarks" in (tmp_path / "eval" / "report.html").read_text()
    assert "Traceback" not in output.out + output.err
    assert "in _logits" in (tmp_path / "eval" / "evaluate.log").read_text(), "the log file has the traceback"


def test_score_may_be_null_but_must_name_benchmarks_of_the_suite(trained, monkeypatch, tmp_path, capsys):
    small = ["suite.max_images=20", "device=cpu", f"checkpoint={trained}", f"hydra.run.dir={tmp_path}/eval"]
    run(evaluate, monkeypatch, *small, "suite.score=null", "~suite.benchmarks.pgd")
    rows = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert {row["benchmark"] for row in rows} == {"clean", "fgsm", "gaussian_noise"}
    line = cli_error(evaluate, monkeypatch, capsys, *small, "~suite.benchmarks.pgd")
    assert line == "error: suite.score.weights.pgd: no such benchmark; the suite has clean, fgsm, gaussian_noise"


def test_suite_of_the_users_own(trained, monkeypatch, tmp_path):
    """A suite in a --config-dir that extends one of nsaug."""
    (tmp_path / "conf" / "suite").mkdir(parents=True)
    (tmp_path / "conf" / "suite" / "mine.yaml").write_text(
        "defaults: [quick, _self_]\nmax_images: 20\neps: [8/255]\n"
        "benchmarks:\n  weak: {_target_: nsaug.evaluation.Benchmark,"
        " attack: {_target_: nsaug.attacks.PGD, num_steps: 1}, param: eps, strengths: [1/255]}\n"
    )
    args = ["--config-dir", f"{tmp_path}/conf", "suite=mine", "device=cpu", f"checkpoint={trained}"]
    run(evaluate, monkeypatch, *args, f"hydra.run.dir={tmp_path}/eval")
    rows = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert {row["benchmark"] for row in rows} == {"clean", "fgsm", "pgd", "gaussian_noise", "weak", "score"}
    assert {row["n"] for row in rows} == {20}


def test_last_checkpoint_of_a_crashed_run(monkeypatch, tmp_path):
    from nsaug.training.lightning_module import Finetuner

    training_step = Finetuner.training_step

    def crashing_step(self, batch, batch_idx):
        if self.current_epoch == 1:
            raise RuntimeError("power cut")
        return training_step(self, batch, batch_idx)

    monkeypatch.setattr(Finetuner, "training_step", crashing_step)
    with pytest.raises(RuntimeError, match="power cut"):
        run(train, monkeypatch, *FAST, "trainer.max_epochs=2", "method=clean", f"hydra.run.dir={tmp_path}/run")
    small = ["suite.eps=[8/255]", "suite.max_images=20", "device=cpu", f"hydra.run.dir={tmp_path}/eval"]
    run(evaluate, monkeypatch, *small, f"checkpoint={tmp_path}/run/last.ckpt")
    assert len(top1(tmp_path / "eval")) == 5


def test_contradicting_settings_are_one_line(monkeypatch, tmp_path, capsys):
    wrong = ["model=micro", "data=digits", "suite.benchmarks.pgd.param=null", f"hydra.run.dir={tmp_path}", "device=cpu"]
    assert "needs both param and strengths" in cli_error(evaluate, monkeypatch, capsys, *wrong)


def test_evaluating_the_moving_average_is_logged(monkeypatch, tmp_path, capsys):
    run(train, monkeypatch, *SHORT, "method=clean", "ema=0.9", f"hydra.run.dir={tmp_path}/run")
    small = ["suite.eps=[8/255]", "suite.max_images=20", "device=cpu", f"hydra.run.dir={tmp_path}/eval"]
    run(evaluate, monkeypatch, *small, f"checkpoint={tmp_path}/run")
    assert "evaluating the moving average of its weights (ema=0.9)" in capsys.readouterr().out


def test_model_with_another_number_of_classes_is_refused(monkeypatch, tmp_path, capsys):
    line = cli_error(
        evaluate, monkeypatch, capsys, "model=micro", "data=digits", f"hydra.run.dir={tmp_path}", "device=cpu"
    )
    assert "has 1000 classes, the data set has 10: finetune it first" in line


def test_suite_corruptions(trained, monkeypatch, tmp_path, capsys):
    pytest.importorskip("imagecorruptions", reason="needs the extra corruptions")
    run(
        evaluate, monkeypatch, "suite=corruptions", f"checkpoint={trained}", "device=cpu", "suite.max_images=40",
        "suite.severities=[5]", f"hydra.run.dir={tmp_path}/eval", f"cache={tmp_path}/cache",
    )  # fmt: skip
    with open(tmp_path / "eval" / "results.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["condition"] == "corrupted" and row["metric"] == "top1"]
    assert len(rows) == 15
    assert "jpeg_compression 5" in capsys.readouterr().out
    line = cli_error(
        evaluate, monkeypatch, capsys, "suite=corruptions", f"checkpoint={trained}", "device=cpu",
        "suite.corruption_error.alexnet=true", f"hydra.run.dir={tmp_path}/eval",
    )  # fmt: skip
    assert line.startswith("error: suite.corruption_error.alexnet=true: mCE is normalized by AlexNet's errors")


def test_suite_nullspace(trained, monkeypatch, tmp_path, capsys):
    run(
        evaluate, monkeypatch, "suite=nullspace", f"checkpoint=[{trained},{trained}/last.ckpt]", "device=cpu",
        "suite.num_noises=2", "suite.num_images=40", "suite.benchmarks.noise.synthesis.num_passes=2",
        "suite.benchmarks.radius.num_noises=1", "suite.benchmarks.radius.num_updates=4", "suite.eps=[0.05]",
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
        "batch_size=4", f"hydra.run.dir={tmp_path}", "device=cpu",
    )  # fmt: skip
    assert len(top1(tmp_path)) == 7


@pytest.fixture
def evaluate_imagenet(sample, monkeypatch, tmp_path):
    """A function that runs evaluate.py on a small model of 1,000 classes and 1,000 real images; returns top-1 rows."""
    args = {"depth": 1, "embed_dim": 24, "num_heads": 2}
    torch.manual_seed(0)
    save_file(build_vit("vit_tiny_patch16_224", num_classes=1000, args=args).state_dict(), tmp_path / "vit.safetensors")
    monkeypatch.setenv("NSAUG_DATA", str(tmp_path / "data"))

    def evaluate_with(*arguments):
        run(
            evaluate, monkeypatch, "model=vit_ti", "model.args={depth: 1, embed_dim: 24, num_heads: 2}", "device=cpu",
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
    assert list(rows) == ["clean", "clean_imagenet_a", "imagenet_a", "clean_imagenet_r"]
    assert [rows[name]["n"] for name in rows] == [100, 100, 29, 100]
    assert rows["imagenet_a"]["notes"].split("; ") == [
        "170 of 200 classes have no images (n01985128, n01986214, n02007558, ...)",
        "30 of 7,500 images are there", "predictions restricted to 200 classes",
        f"1 of 30 images cannot be read ({wnids()[class_subset_indices('imagenet_a')[4]]}/x.jpg)",
    ]  # fmt: skip
    report = (tmp_path / "eval" / "report.html").read_text()
    output = capsys.readouterr().out
    for text in (output, report, (tmp_path / "eval" / "results.md").read_text()):
        assert "imagenet_a, clean_imagenet_r: predictions restricted to 200 classes" in text
        assert "clean: 100 of 1,000 images, drawn with seed 0" in text
        assert f"skipped: imagenet_r: ImageNet-R: there is no folder {tmp_path}/data/imagenet-r; it is" in text
        assert "https://github.com/hendrycks/imagenet-r" in text


def test_attacks_on_a_shifted_data_set(evaluate_imagenet, sample, tmp_path, capsys):
    for label in class_subset_indices("imagenet_a")[::20]:
        place(sample[label], tmp_path / "data" / "imagenet-a" / wnids()[label] / "x.jpg")
    where = f"data.root={tmp_path}/data/imagenet-a"
    rows = evaluate_imagenet("data=imagenet_a", where, "suite.benchmarks.pgd.attack.num_steps=2", "suite.eps=[1/255]")
    assert {"clean", "pgd", "gaussian_noise"} <= set(rows)
    assert all("predictions restricted to 200 classes" in row["notes"] and row["n"] == 10 for row in rows.values())
    real = tmp_path / "real" / "val" / wnids()[0] / "ILSVRC2012_val_00000002.JPEG"
    place(sample[0], real)
    with pytest.raises(SystemExit):
        evaluate_imagenet("data=imagenet_real", f"data.root={tmp_path}/real")
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: suite.benchmarks.fgsm: attacks need one label per image, this data set has sets")


def test_require_data_refuses_missing_data_sets(evaluate_imagenet, capsys, tmp_path):
    with pytest.raises(SystemExit):
        evaluate_imagenet("suite=shift", "suite.require_data=true")
    line = capsys.readouterr().err.strip()
    assert line.startswith("error: ReaL: labels belong to names such as ILSVRC2012_val_00000001.JPEG, and")
    assert f"; DAmageNet: there is no folder {tmp_path}/data/DAmageNet; it is published at https://" in line
    assert line.endswith("(suite.require_data=false skips them)")
    assert "\n" not in line


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
    drop = [f"~suite.benchmarks.{name}" for name in ("fgsm_rs", "pgd_margin", "mifgsm", "autoattack", "deepfool", "cw")]
    names = tmp_path / "list.txt"
    names.write_text("".join(f"{sample[label].name}\n" for label in labels))
    rows = evaluate_imagenet(
        "suite=imagenet", *drop, "~suite.benchmarks.patch_fool", f"suite.image_list={names}", "suite.eps=[1/255]",
        "suite.benchmarks.nullspace_noise.strengths=[1]", "suite.benchmarks.pgd_l2.attack.num_steps=1",
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
    assert line.startswith("error: suite.benchmarks.sketch has 1,000 classes such as n01440764, nullspace, seed 0 has")
    assert "~suite.benchmarks.sketch" in line


def test_benchmark_with_a_folder_of_the_users_own(trained, monkeypatch, tmp_path, capsys):
    """Inverted digits, in folders."""
    digits = Digits().test_dataset()
    digits.setup("test")
    for index in range(0, 60):
        folder = tmp_path / "inverted" / "val" / str(digits.images.labels[index])
        folder.mkdir(parents=True, exist_ok=True)
        ImageOps.invert(digits.images.load(index)).save(folder / f"{index}.png")
    run(
        evaluate, monkeypatch, f"checkpoint={trained}", "device=cpu", f"hydra.run.dir={tmp_path}/eval",
        "+suite.benchmarks.inverted={_target_: nsaug.evaluation.Benchmark,"
        f" data: {{_target_: nsaug.data.Folder, root: {tmp_path}/inverted}}}}",
        "~suite.benchmarks.pgd", "~suite.benchmarks.fgsm", "~suite.score.weights.pgd",
    )  # fmt: skip
    rows = json.loads((tmp_path / "eval" / "results.json").read_text())
    by_name = {row["benchmark"]: row for row in rows if row["metric"] == "top1"}
    assert (by_name["inverted"]["n"], by_name["inverted"]["condition"]) == (60, "shifted")
    assert by_name["inverted"]["value"] < by_name["clean"]["value"]


def test_validation_split(monkeypatch, tmp_path, capsys, trained):
    small = ["suite.eps=[8/255]", "suite.std=[0.1]", "suite.max_images=null", "device=cpu"]
    run(evaluate, monkeypatch, f"checkpoint={trained}", "split=val", f"hydra.run.dir={tmp_path}/val", *small)
    assert "144 validation images" in capsys.readouterr().out
    data = Digits()
    data.setup("fit")
    with np.load(next((tmp_path / "outputs").rglob("*.npz"))) as cached:
        assert list(cached["ids"]) == data.val_set.ids
    line = cli_error(evaluate, monkeypatch, capsys, f"checkpoint={trained}", "split=train")
    assert "split" in line


def test_validation_split_of_a_run_without_one(monkeypatch, tmp_path, capsys, trained):
    line = cli_error(
        evaluate, monkeypatch, capsys, f"checkpoint={trained}", "split=val", "data=digits", "data.val_fraction=0"
    )
    assert "split=val: the run has no validation images (data.val_fraction=0)" in line
