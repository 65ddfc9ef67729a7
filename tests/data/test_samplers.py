import random

import lightning as L
import numpy as np
import pytest
import torch

from nsaug.data import Digits, SeededDataset
from tests.data.helpers import fit_data, set_progress


@pytest.mark.parametrize("num_workers", [0, 2])
def test_augmentation_depends_on_seed_and_key_alone(num_workers):
    options = {"crop": "padded", "hflip": 0.5, "auto_augment": "rand-m9-mstd0.5-inc1"}
    data = fit_data(Digits(batch_size=32, num_workers=num_workers, **options))
    unreadable = torch.zeros(len(data.train_set), dtype=torch.bool)
    images = SeededDataset(data.train_set, 0, unreadable)
    L.seed_everything(4, verbose=False)
    state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    views = torch.stack([images[epoch, 7][0] for epoch in range(12)])
    assert len({view.numpy().tobytes() for view in views}) > 6
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (np.random.get_state()[1] == state[1][1]).all()
    assert random.getstate() == state[2]
    L.seed_everything(9, verbose=False)
    assert torch.equal(images[3, 7][0], views[3])
    assert not torch.equal(images[3, 1, 7][0], views[3])
    other_seed = SeededDataset(data.train_set, 1, unreadable)
    assert not torch.equal(torch.stack([other_seed[epoch, 7][0] for epoch in range(12)]), views)
    pixels, _, ids = next(iter(set_progress(data, epoch=3).train_dataloader()))
    position = data.train_set.ids.index(ids[0])
    assert torch.equal(pixels[0], images[3, position][0])
