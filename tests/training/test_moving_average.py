"""The moving average of the weights; tests/models/test_checkpoint_formats.py reads that of Lightning."""

import pytest
import torch

from nsaug.cli import train
from nsaug.training.moving_average import MovingAverage
from tests.commands import FAST, run

pytestmark = pytest.mark.usefixtures("tmp_cwd")
DECAY = 0.9
KEY = "vit.blocks.0.mlp.fc1.weight"


def test_average_is_validated_and_saved_beside_the_weights(monkeypatch, tmp_path):
    seen, validated = [], []
    update, swap = MovingAverage.on_train_batch_end, MovingAverage.on_validation_start

    def recording(self, trainer, module, *args):
        seen.append(module.state_dict()[KEY].clone())
        update(self, trainer, module, *args)

    def swapping(self, trainer, module):
        swap(self, trainer, module)
        validated.append(module.state_dict()[KEY].clone())

    monkeypatch.setattr(MovingAverage, "on_train_batch_end", recording)
    monkeypatch.setattr(MovingAverage, "on_validation_start", swapping)
    settings = [*FAST, "method=clean", f"ema={DECAY}", "trainer.max_epochs=1", "trainer.accumulate_grad_batches=3"]
    run(train, monkeypatch, *settings, f"hydra.run.dir={tmp_path}/run")
    steps = [*seen[2::3], seen[-1]]  # after every third batch, and the last one
    assert len(steps) == 7
    weights = [DECAY**6, *((1 - DECAY) * DECAY ** (6 - step) for step in range(1, 7))]
    average = sum(weight * value for weight, value in zip(weights, steps, strict=True))
    checkpoint = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    torch.testing.assert_close(checkpoint["state_dict"][KEY], average)
    assert torch.equal(checkpoint["current_model_state"][KEY], steps[-1])
    assert [torch.equal(value, checkpoint["state_dict"][KEY]) for value in validated] == [True]
    assert (average - steps[-1]).abs().max() > 1e-4
