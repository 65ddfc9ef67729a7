from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch

from nsaug.data import Digits, Folder, TestDataset
from nsaug.data.datamodule import as_test_dataset
from nsaug.data.dataset import PAD_LABEL
from nsaug.utils.errors import UserError
from tests.data.helpers import CONFIG, fit_data, make_tree, open_test, set_progress


def test_val_split_is_the_same_for_every_seed():
    splits = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        splits.append(fit_data(Digits(), seed=seed).val_set.ids)
    assert splits[0] == splits[1]
    assert len(splits[0]) == pytest.approx(0.1 * 1438, abs=30)


def test_val_split_does_not_depend_on_the_other_images(tmp_path):
    make_tree(tmp_path / "train", ["cat", "dog"], images=40)
    before = fit_data(Folder(root=str(tmp_path), val_fraction=0.25)).val_set.ids
    (tmp_path / "train/cat/0.png").unlink()
    make_tree(tmp_path / "train", ["ant", "fox"], images=40)
    after = fit_data(Folder(root=str(tmp_path), val_fraction=0.25)).val_set.ids
    assert [name for name in after if "cat" in name or "dog" in name] == [n for n in before if n != "train/cat/0.png"]
    smaller = fit_data(Folder(root=str(tmp_path), val_fraction=0.1)).val_set.ids
    assert set(smaller) < set(after)


@pytest.mark.parametrize("val_fraction", [1.0, 1e-6])
def test_empty_split_is_refused(val_fraction):
    with pytest.raises(UserError, match=r"data.val_fraction=.* leaves"):
        Digits(val_fraction=val_fraction).setup("fit")


def test_no_validation_split():
    data = fit_data(Digits(val_fraction=0))
    assert data.val_dataloader() == []
    assert len(data.train_set) == 1438


def test_images_need_a_configured_module():
    data = Digits()
    with pytest.raises(AssertionError, match="call setup"):
        data.configure(CONFIG)
    data.setup("fit")
    with pytest.raises(AssertionError, match="call configure"):
        data.train_set[0]


def test_setup_keeps_the_configuration():
    """Lightning calls setup once more when training starts."""
    data = fit_data(Digits(), seed=3)
    images = data.train_set
    data.setup("fit")
    assert data.train_set is images
    assert images[0][0].shape == (3, 8, 8)


def test_views_are_independent_augmentations_of_one_image():
    data = fit_data(Digits(crop="padded", hflip=0, batch_size=4), num_views=2)
    images, labels, _ = next(iter(data.train_dataloader()))
    assert images.shape == (4, 2, 3, 8, 8)
    assert labels.shape == (4,)
    samples = [data.train_set[5][0] for _ in range(20)]
    assert any(not torch.equal(first, second) for first, second in samples)
    shifted = {view.numpy().tobytes() for views in samples for view in views}
    assert 5 < len(shifted) <= 9, "shifts are at most one pixel"
    assert data.val_set[0][0].shape == (3, 8, 8)


def epoch_keys(data):
    """The keys that the training loader requests, batch by batch."""
    return [list(batch) for batch in data.train_dataloader().batch_sampler]


def positions(batches):
    return [position for batch in batches for _, position in batch]


def test_order_depends_on_seed_and_epoch_alone():
    data = fit_data(Digits(batch_size=64))
    first = epoch_keys(set_progress(data))
    L.seed_everything(5, verbose=False)
    assert epoch_keys(set_progress(data)) == first
    assert len(first) == 20
    assert all(len(batch) == 64 for batch in first)
    assert len(set(positions(first))) == 20 * 64
    assert positions(first) != sorted(positions(first))
    assert positions(epoch_keys(set_progress(data, epoch=1))) != positions(first)
    data.configure(CONFIG, seed=1)
    assert epoch_keys(set_progress(data)) != first


def test_order_resumes_in_mid_epoch():
    data = fit_data(Digits(batch_size=64))
    first = epoch_keys(set_progress(data))
    assert epoch_keys(set_progress(data, done=7)) == first[7:]
    assert epoch_keys(set_progress(data, done=20)) == first, "after a whole epoch, at the start of the next"


@pytest.mark.parametrize(("world_size", "batch_size"), [(2, 64), (3, 50), (3, 2000)])
def test_ranks_share_the_training_images(world_size, batch_size):
    data = fit_data(Digits(batch_size=batch_size))
    ranks = [epoch_keys(set_progress(data, 2, world_size=world_size, rank=rank)) for rank in range(world_size)]
    assert len({tuple(map(len, batches)) for batches in ranks}) == 1, "batches of the same sizes on all ranks"
    keys = [key for batches in ranks for batch in batches for key in batch]
    assert len(keys) - len(set(keys)) < world_size, "repeated only to fill the last batch"
    assert len(set(keys)) > len(data.train_set) - world_size * batch_size
    assert {epoch for epoch, _ in keys} == {2}


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_validation_image_counts_once(tmp_path, caplog, world_size, num_workers):
    make_tree(tmp_path / "train", ["cat", "dog"], images=40)
    source = Folder(root=str(tmp_path), val_fraction=0.25, batch_size=4, num_workers=num_workers, max_unreadable=0.05)
    expected = fit_data(source).val_set.ids
    broken = expected[3]
    (tmp_path / broken).write_bytes(b"")
    counted, sizes = [], set()
    for rank in range(world_size):
        set_progress(source, world_size=world_size, rank=rank)
        batches = list(source.val_dataloader())
        sizes.add(tuple(len(images) for images, _, _ in batches))
        for images, labels, ids in batches:
            assert images.shape[1:] == (3, 8, 8)
            counted += [name for name, label in zip(ids, labels.tolist(), strict=True) if label != PAD_LABEL]
    assert len(sizes) == 1, "batches of the same sizes on all ranks"
    assert sorted(counted) == sorted(set(expected) - {broken})
    for _ in range(2):
        set_progress(source).check_unreadable("val")
    lines = [record.message for record in caplog.records]
    assert lines == [f"1 of {len(expected)} validation images cannot be read ({broken}): they do not count"]


def test_processes_count_unreadable_images_together(tmp_path, caplog):
    """Two images of 80 each: more than 0.03 of the images together, but not alone."""
    make_tree(tmp_path / "train", ["cat", "dog"], images=40)
    ranks = []
    for rank in range(2):
        data = fit_data(Folder(root=str(tmp_path), val_fraction=0, max_unreadable=0.03))
        ranks.append(set_progress(data, world_size=2, rank=rank))
        data._unreadable["train"].flags[2 * rank : 2 * rank + 2] = True
    merged = (ranks[0]._unreadable["train"].flags | ranks[1]._unreadable["train"].flags).byte()
    reduce = lambda flags, reduce_op: merged if len(flags) else flags  # noqa: E731

    for data in ranks:
        data.trainer.strategy = SimpleNamespace(reduce=reduce, root_device=torch.device("cpu"))
        with pytest.raises(UserError, match=r"4 of 80 training images .* more than data.max_unreadable=0.03"):
            data.check_unreadable()
        data.max_unreadable = 0.05
        data.check_unreadable("train")
    (record,) = caplog.records
    assert record.message.startswith("4 of 80 training images cannot be read")


def test_test_dataset_is_the_test_split():
    data = open_test(Digits().test_dataset())
    assert isinstance(data, TestDataset)
    assert len(data.images) == 359
    assert data.class_names == [str(digit) for digit in range(10)]
    assert (data.class_subset, data.notes) == (None, [])
    image, label, image_id = data.images[7]
    assert (image.shape, label, image_id) == ((3, 8, 8), data.images.labels[7], data.images.ids[7])


def test_test_dataset_of_the_validation_split():
    source = fit_data(Digits(auto_augment="original"))
    data = open_test(source.test_dataset("val"))
    assert data.images.ids == source.val_set.ids
    assert torch.equal(data.images[0][0], source.val_set[0][0])
    assert data.notes == ["validation images"]
    with pytest.raises(UserError, match=r"split=val: the run has no validation images"):
        Digits(val_fraction=0).test_dataset("val").setup()


def test_as_test_dataset():
    data = Digits().test_dataset()
    assert as_test_dataset(data) is data
    assert open_test(as_test_dataset(Digits(), split="val")).images.ids == fit_data(Digits()).val_set.ids
    with pytest.raises(UserError, match="split=val: Digits has no validation images, choose split=test"):
        as_test_dataset(data, split="val")
