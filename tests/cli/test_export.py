"""nsaug-export: the exported model has the logits of NoisyViT for any batch size."""

import sys

import pytest
import torch

from nsaug.cli import export
from nsaug.evaluation.models import find_models
from nsaug.models.factory import build_vit
from tests.commands import cli_error, run


def check(vit, logits_of):
    for size in (1, 2, 5):
        images = torch.rand(size, 3, 8, 8, generator=torch.Generator().manual_seed(size))
        with torch.no_grad():
            expected = vit(images)
            logits = logits_of(images)
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
        assert expected.std() > 0.1


@pytest.fixture
def vit(trained):
    ((model,), _) = find_models(str(trained), None)
    return build_vit(**model.build_args()).eval()


def test_program_has_the_same_logits(trained, vit, monkeypatch, capsys):
    run(export, monkeypatch, f"checkpoint={trained}", "format=torch_export")
    assert (
        capsys.readouterr().out.splitlines()[-1].startswith(f"{trained}/model.pt2: images (batch, 3, 8, 8) in [0, 1]")
    )
    check(vit, torch.export.load(trained / "model.pt2").module())


def test_onnx_has_the_same_logits(trained, vit, monkeypatch, tmp_path):
    for module in ("onnx", "onnxscript"):
        pytest.importorskip(module)
    onnxruntime = pytest.importorskip("onnxruntime")
    run(export, monkeypatch, f"checkpoint={trained}", "format=onnx", f"output={tmp_path}/new/vit.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "new" / "vit.onnx")
    ((images,), (logits,)) = session.get_inputs(), session.get_outputs()
    assert (images.name, images.shape) == ("images", ["batch", 3, 8, 8])
    assert (logits.name, logits.shape) == ("logits", ["batch", 10])
    check(vit, lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0]))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["vit.onnx"]


def test_errors_are_one_line(trained, monkeypatch, tmp_path, capsys):
    def error(*arguments):
        return cli_error(export, monkeypatch, capsys, *arguments)

    here = f"checkpoint={trained}"
    (tmp_path / "file").touch()
    for arguments, message in (
        ([here], "format lacks a value: type nsaug-export checkpoint=FOLDER format=onnx"),
        ([here, "format=tf"], "format=tf: should be 'onnx' or 'torch_export'"),
        ([f"checkpoint={tmp_path}/no", "format=torch_export"], f"checkpoint={tmp_path}/no does not exist: "),
        (["checkpoint=timm:vit_tiny_patch16_224", "format=torch_export"], "checkpoint=timm:vit_tiny_patch16_224: name"),
        ([here, "format=torch_export", f"output={tmp_path}/file/x"], f"[Errno 17] File exists: '{tmp_path}/file'"),
    ):
        assert error(*arguments).startswith(f"error: {message}")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnx", None)
        assert error(here, "format=onnx") == "error: this needs onnx: pip install 'nsaug[export]'"


def test_model_that_cannot_be_exported_writes_nothing(trained, monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise RuntimeError("step 1\nof 3") from ValueError("data-dependent branch")

    def is_wrong(path):
        return lambda images: torch.ones(len(images), 10)

    settings = [f"checkpoint={trained}", "format=torch_export"]
    with monkeypatch.context() as patch:
        patch.setattr(torch.export, "export", fail)
        line = cli_error(export, monkeypatch, capsys, *settings)
    reason = "torch cannot export VisionTransformer (data-dependent branch): try the other format"
    assert line == f"error: format=torch_export: {reason}"
    monkeypatch.setitem(export.FORMATS, "torch_export", (export.to_program, is_wrong, ".pt2"))
    assert "the exported logits differ by" in cli_error(export, monkeypatch, capsys, *settings)
    assert not [path for path in trained.iterdir() if ".pt2" in path.name]
