"""Export a finetuned model as an ONNX file or a torch.export program, for use without nsaug and timm.

    nsaug-export checkpoint=FOLDER format=onnx

Settings, with their defaults:

    checkpoint         output folder of train.py, or another folder with config.json that evaluate.py reads
    format             onnx, or torch_export: a program of torch.export, for torch.export.load
    output=null        file to write; null: model.onnx or model.pt2 in the folder

The input `images` is (batch, 3, H, W) in [0, 1], not normalized: the model normalizes, as NoisyViT does. The batch size
is dynamic. The output is `logits`, (batch, classes). The exported model is compared with PyTorch before it is written;
format=onnx needs pip install 'nsaug[export]'.
"""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nsaug.cli.errors import root
from nsaug.cli.plain import plain_command
from nsaug.models.noisy_vit import NoisyViT
from nsaug.utils.errors import UserError, first_line
from nsaug.utils.files import atomic_write
from nsaug.utils.optional_imports import optional_import
from nsaug.utils.types import Text, validated_dataclass

TOLERANCE = 1e-5
"""Largest difference of logits, relative to the largest logit if that is above 1."""
BATCH_SIZES = (1, 3)
"""Of the comparison; the model is traced with another one."""


@validated_dataclass
class ExportSettings:
    """What to export, and how."""

    checkpoint: Text
    format: Literal["onnx", "torch_export"]
    output: Text | None = None


class Classifier(nn.Module):
    """A NoisyViT without noise: images in [0, 1] to logits."""

    mean: Tensor
    std: Tensor

    def __init__(self, vit: NoisyViT) -> None:
        super().__init__()
        self.model = vit.model
        self.register_buffer("mean", vit.mean)
        self.register_buffer("std", vit.std)

    def forward(self, images: Tensor) -> Tensor:
        return self.model((images - self.mean) / self.std)


@plain_command
def main(settings: ExportSettings) -> None:
    """Load the model, export it to a temporary file, compare, and move the file to its place."""
    from nsaug.evaluation.models import find_models
    from nsaug.models.factory import build_vit

    (model, *others), damaged = find_models(settings.checkpoint, None)
    if others or damaged or model.checkpoint is None:
        raise UserError(f"checkpoint={settings.checkpoint}: name one folder")
    to_file, run, suffix = FORMATS[settings.format]
    output = Path(settings.output or Path(model.checkpoint).with_name(f"model{suffix}")).expanduser()
    if settings.format == "onnx":
        for module in ("onnx", "onnxscript", "onnxruntime"):
            optional_import("export", module)
    vit = build_vit(**model.build_args()).eval()
    with atomic_write(output) as tmp_path, quiet():
        images = torch.rand(2, *vit.data_config["input_size"])
        try:
            to_file(Classifier(vit).eval(), images, tmp_path)
        except OSError:
            raise
        except Exception as error:  # torch's exporters raise almost any error for code that they cannot trace
            raise UserError(
                f"format={settings.format}: torch cannot export {type(vit.model).__name__} ({first_line(root(error))}):"
                " try the other format"
            ) from error
        difference = max(compare(vit, run(tmp_path), images.shape[1:], size) for size in BATCH_SIZES)
        if difference > TOLERANCE:
            raise UserError(f"format={settings.format}: the exported logits differ by {difference:.1g}: try the other")
    print(f"{output}: images (batch, {', '.join(map(str, images.shape[1:]))}) in [0, 1]; ", end="")
    print(f"logits differ by at most {difference:.1g} from PyTorch's")


@torch.no_grad()
def compare(vit: NoisyViT, run: Callable[[Tensor], Tensor], shape: torch.Size, size: int) -> float:
    """Largest difference between the logits of an exported model and those of PyTorch, on random images."""
    images = torch.rand(size, *shape)
    expected = vit(images)
    return float((run(images) - expected).abs().max() / expected.abs().max().clamp_min(1))


def to_onnx(model: nn.Module, images: Tensor, path: Path) -> None:
    """Write an ONNX file with weights inside."""
    program = torch.onnx.export(
        model,
        (images,),
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=dynamic_batch(),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.save(str(path), external_data=False)


def run_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    """The model in an ONNX file, by onnxruntime on the CPU."""
    session = optional_import("export", "onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def to_program(model: nn.Module, images: Tensor, path: Path) -> None:
    """Write a program of torch.export."""
    with open(path, "wb") as file:
        torch.export.save(torch.export.export(model, (images,), dynamic_shapes=dynamic_batch()), file)


def run_program(path: Path) -> Callable[[Tensor], Tensor]:
    """The model in a program of torch.export."""
    with open(path, "rb") as file:
        return torch.export.load(file).module()


def dynamic_batch() -> dict[str, Any]:
    return {"images": {0: torch.export.Dim("batch")}}


FORMATS = {"onnx": (to_onnx, run_onnx, ".onnx"), "torch_export": (to_program, run_program, ".pt2")}


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporters' own messages; what is wrong follows as an error."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(logging.NOTSET)


if __name__ == "__main__":
    main()
