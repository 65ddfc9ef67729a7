"""Imports point downwards only, and the lower layers work without Lightning, Hydra and W&B."""

import ast
import subprocess
import sys

from tests.conftest import ROOT

ALLOWED = {  # package: those it may import
    "utils": set(),
    "models": {"utils"},
    "nullspace": {"models", "utils"},
    "attacks": {"models", "utils"},
    "corruptions": {"models", "utils"},
    "methods": {"attacks", "corruptions", "nullspace", "models", "utils"},
    "data": {"attacks", "corruptions", "nullspace", "models", "utils"},
    "training": {"methods", "data", "attacks", "corruptions", "nullspace", "models", "utils"},
    "evaluation": {"methods", "data", "attacks", "corruptions", "nullspace", "models", "utils"},
    "cli": {"training", "evaluation", "methods", "data", "attacks", "corruptions", "nullspace", "models", "utils"},
    "api": {"cli", "training", "evaluation", "methods", "data", "models", "utils"},
}
RESTRICTED = {  # library: the paths below nsaug/ that may import it
    "hydra": ("cli/",),
    "omegaconf": ("cli/", "api/"),
    "wandb_workspaces": ("evaluation/reporting/",),
    "wandb": ("utils/wandb_account", "training/loggers", "training/callbacks", "evaluation/reporting/"),
    "lightning": ("data/", "training/", "evaluation/", "cli/", "api/"),
}
FILES = sorted(path.relative_to(ROOT / "nsaug").as_posix() for path in (ROOT / "nsaug").glob("*/**/*.py"))


def imported_modules(file: str) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse((ROOT / "nsaug" / file).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def is_allowed(file: str, name: str) -> bool:
    package = file.partition("/")[0]
    top, _, rest = name.partition(".")
    if top == "nsaug":
        return rest.partition(".")[0] in ALLOWED[package] | {package, "__version__"}
    return file.startswith(RESTRICTED.get(top, ""))


def test_imports_point_downwards():
    wrong = {(file, name) for file in FILES for name in imported_modules(file) if not is_allowed(file, name)}
    assert not wrong


def test_lower_layers_import_without_lightning_hydra_and_wandb():
    """Nor fcntl, which Windows does not have."""
    code = """
import importlib, pkgutil, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("lightning", "hydra", "omegaconf", "wandb", "fcntl"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
for name in ("nsaug.models", "nsaug.nullspace", "nsaug.attacks", "nsaug.corruptions"):
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, f"{name}."):
        importlib.import_module(module.name)
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_slow_imports_wait_until_they_are_needed():
    """Lightning and timm load matplotlib, SciPy and W&B themselves; what else takes long is loaded at first use."""
    code = """
import sys
import nsaug
assert "torch" not in sys.modules
nsaug.finetune, nsaug.evaluate
import nsaug.cli.evaluate, nsaug.cli.train, nsaug.data, nsaug.evaluation, nsaug.methods
import nsaug.training.callbacks, nsaug.training.checkpointing, nsaug.training.lightning_module, nsaug.training.loggers
slow = {"pandas", "sklearn", "torch._inductor.compile_fx", "imagecorruptions", "foolbox"}
assert not slow & set(sys.modules), slow & set(sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
