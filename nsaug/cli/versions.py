"""What a bug report has to say about the environment: `python -m nsaug --version`."""

import argparse
import os
import platform
import subprocess
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from nsaug import __version__
from nsaug.utils.errors import with_type
from nsaug.utils.text import printable

REQUIRED = (
    "torchvision", "lightning", "timm", "torchmetrics", "hydra-core", "omegaconf", "pydantic", "typing_extensions",
    "wandb", "safetensors", "huggingface_hub", "numpy", "pandas", "scikit-learn", "matplotlib", "rich", "scipy",
    "jinja2", "pillow",
)  # fmt: skip
OPTIONAL = (
    "foolbox", "pyautoattack", "imagecorruptions-imaug", "onnx", "onnxscript", "onnxruntime", "hydra-submitit-launcher",
    "hydra-optuna-sweeper", "sqlalchemy", "tensorboard", "wandb-workspaces",
)  # fmt: skip
COMMANDS = """\
nsaug-train       finetune a model             (in a checkout: python train.py)
nsaug-evaluate    measure its robustness       (in a checkout: python evaluate.py)
nsaug-push        upload it to the Hugging Face hub
nsaug-export      write it as ONNX or torch.export
nsaug-dashboard   make a dashboard of a Weights & Biases project

Each of them prints its settings with --help."""
GIT_SECONDS = 10.0


def main() -> None:
    """Print the versions, or the commands if nothing is asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m nsaug",
        description="Finetune vision transformers on approximate nullspace noise, and measure their robustness.",
        epilog=COMMANDS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print what a bug report needs, and exit")
    parser.error = lambda message: parser.exit(1, f"error: {message}: see --help\n")  # type: ignore[method-assign]
    if parser.parse_args().version:
        print(describe())
    else:
        parser.print_help()


def describe() -> str:
    """Versions and devices, one per line. What is missing or broken is named instead of its version."""
    rows: dict[str, Callable[[], str]] = {
        "nsaug": describe_nsaug,
        "python": platform.python_version,
        "platform": platform.platform,
        "torch": describe_torch,
        "devices": describe_devices,
        **{name: partial(describe_package, name) for name in (*REQUIRED, *OPTIONAL)},
    }
    width = max(map(len, rows))
    return "\n".join(f"{name:{width}}  {_describe_or_reason(row)}" for name, row in rows.items())


def _describe_or_reason(row: Callable[[], str]) -> str:
    try:
        return row()
    except Exception as error:  # a broken installation is what a report may be about
        return printable(with_type(error))


def describe_package(name: str) -> str:
    """Version of an installed package, from its metadata: importing it may fail or take long."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def describe_nsaug() -> str:
    """Version of nsaug, in a checkout with its commit."""
    commit = find_commit(Path(__file__).resolve().parents[2])
    return f"{__version__}, {commit}" if commit else __version__


def find_commit(root: Path) -> str | None:
    """The commit of a checkout, and whether files differ from it; None outside of one or without git."""
    if not (root / ".git").exists():  # of nsaug itself: a parent folder may be another project's repository
        return None
    try:
        commit, changes = _git(root, "rev-parse", "--short", "HEAD"), _git(root, "status", "--porcelain")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"commit {commit}" + (" with changes" if changes else "")


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=GIT_SECONDS).stdout.strip()


def describe_torch() -> str:
    """Version of torch, with the CUDA or ROCm and the cuDNN it was built with."""
    import torch

    parts = [str(torch.__version__)]
    if torch.version.cuda:
        parts.append(f"CUDA {torch.version.cuda}")
    if torch.version.hip:
        parts.append(f"ROCm {torch.version.hip}")
    if torch.backends.cudnn.is_available():
        parts.append(f"cuDNN {torch.backends.cudnn.version()}")
    return ", ".join(parts)


def describe_devices() -> str:
    """The processors that torch sees, with the memory of the GPUs."""
    import torch

    devices = [f"{os.cpu_count()} CPU cores ({torch.get_num_threads()} threads)"]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append(f"cuda:{index} {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    if torch.backends.mps.is_available():
        devices.append("mps")
    return "; ".join(devices)
