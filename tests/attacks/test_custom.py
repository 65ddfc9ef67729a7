"""An attack outside the package: attack=custom attack._target_=mypkg.MyAttack."""

import torch

from nsaug.attacks import Attack
from nsaug.cli import train
from tests.commands import FAST, cli_error, metrics, run


class BlackImages:
    """Replaces every image by a black one."""

    num_steps = 1

    def __init__(self, eps: float = 1.0) -> None:
        self.eps = eps

    def __call__(self, model, images, labels, generator=None):
        return torch.clamp(images - self.eps, 0, 1)


def test_custom_attack_satisfies_protocol():
    assert isinstance(BlackImages(), Attack)
    assert not isinstance(lambda model, images, labels, generator=None: images, Attack)


def test_train_with_custom_attack(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    target = f"attack._target_={__name__}.BlackImages"
    overrides = ["method=clean", "trainer.max_epochs=1", "attack=custom", target, "+attack.eps=1.0"]
    run(train, monkeypatch, *FAST, *overrides, "hydra.run.dir=run")
    (accuracy,) = [float(row["val/adv_top1"]) for row in metrics(tmp_path / "run") if row["val/adv_top1"]]
    assert accuracy < 0.3


def test_custom_attack_without_target_is_refused(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    line = cli_error(train, monkeypatch, capsys, "attack=custom")
    assert line == "error: attack._target_ is not set: type attack._target_=..."
