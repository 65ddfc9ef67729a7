"""Mixup, cutmix and label smoothing against their definitions."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from nsaug.training.mixup import Mixup
from nsaug.utils.errors import UserError

KEY = (0, 1, 2)


@pytest.fixture
def batch(images):
    return images, torch.arange(6)


def test_default_changes_nothing(batch):
    images, labels = Mixup()(*batch, 10, KEY)
    assert images is batch[0]
    assert labels is batch[1]


def test_label_smoothing_equals_torch(batch):
    images, targets = Mixup(label_smoothing=0.1)(*batch, 10, KEY)
    logits = torch.randn(6, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = F.cross_entropy(logits, batch[1], label_smoothing=0.1)
    torch.testing.assert_close(F.cross_entropy(logits, targets), expected, atol=1e-7, rtol=0)
    assert images is batch[0]


def test_mixup_mixes_images_and_labels_by_the_same_ratio(batch):
    images, targets = Mixup(mixup_alpha=1.0)(*batch, 10, KEY)
    ratio = targets[0, 0]
    assert 0 < ratio < 1
    torch.testing.assert_close(images, ratio * batch[0] + (1 - ratio) * batch[0].flip(0), atol=1e-6, rtol=0)
    one_hot = F.one_hot(batch[1], 10).double()
    torch.testing.assert_close(targets, ratio * one_hot + (1 - ratio) * one_hot.flip(0), atol=1e-6, rtol=0)


def test_cutmix_labels_match_the_area_of_the_box(batch):
    images, targets = Mixup(cutmix_alpha=1.0)(*batch, 10, (0, 1, 3))
    pasted = (images == batch[0].flip(0)).all(1)
    assert (pasted | (images == batch[0]).all(1)).all()
    torch.testing.assert_close(pasted.double().mean((1, 2)), 1 - targets[torch.arange(6), batch[1]], atol=1e-6, rtol=0)
    assert 0 < pasted.double().mean() < 1


@pytest.mark.parametrize("mode", ["pair", "elem"])
def test_modes_draw_one_ratio_per_pair_or_image(batch, mode):
    _, targets = Mixup(mixup_alpha=1.0, mode=mode)(*batch, 10, KEY)
    ratios = targets[torch.arange(6), batch[1]]
    assert len(ratios.unique()) == (3 if mode == "pair" else 6)
    torch.testing.assert_close(targets.sum(1), torch.ones(6, dtype=torch.float64))


def test_views_of_an_image_are_mixed_alike(batch):
    views = torch.stack([batch[0], 1 - batch[0]], 1)
    mixed, targets = Mixup(mixup_alpha=1.0, cutmix_alpha=1.0)(views, batch[1], 10, KEY)
    single, same = Mixup(mixup_alpha=1.0, cutmix_alpha=1.0)(*batch, 10, KEY)
    torch.testing.assert_close(mixed[:, 0], single)
    torch.testing.assert_close(targets, same)
    torch.testing.assert_close(mixed[:, 1], 1 - single)


def test_draws_depend_on_the_key_alone(batch):
    before = batch[0].clone()
    state = np.random.get_state()[1].copy()
    first, _ = Mixup(mixup_alpha=1.0)(*batch, 10, KEY)
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    np.random.rand(3)
    again, _ = Mixup(mixup_alpha=1.0)(*batch, 10, KEY)
    other, _ = Mixup(mixup_alpha=1.0)(*batch, 10, (0, 1, 3))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first, other)
    assert torch.equal(batch[0], before), "the input is not modified"


def test_prob_zero_mixes_nothing(batch):
    images, targets = Mixup(mixup_alpha=1.0, prob=0.0)(*batch, 10, KEY)
    assert torch.equal(images, batch[0])
    assert torch.equal(targets.argmax(1), batch[1])


def test_odd_batch_is_an_error(batch):
    with pytest.raises(UserError, match=r"a batch has 5: use an even batch size"):
        Mixup(cutmix_alpha=1.0)(batch[0][:5], batch[1][:5], 10, KEY)
