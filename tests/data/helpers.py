"""Data configurations and folder trees for the tests of nsaug.data."""

from types import SimpleNamespace

from PIL import Image

CONFIG = {
    "input_size": (3, 8, 8),
    "crop_pct": 1.0,
    "interpolation": "bicubic",
    "crop_mode": "center",
    "mean": (0.5, 0.5, 0.5),
}


def config(size, **kwargs):
    return {**CONFIG, "input_size": (3, size, size), **kwargs}


def make_tree(root, classes, images=4, size=(10, 12)):
    """Create class folders; the red channel is the position of the class, the green one that of the image."""
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(images):
            Image.new("RGB", size, (label, number, 0)).save(root / name / f"{number}.png")


def fit_data(data, data_config=CONFIG, **kwargs):
    """Set up a data module for training."""
    data.setup("fit")
    data.configure(data_config, **kwargs)
    return data


def open_test(data, data_config=CONFIG):
    """Set up a test set."""
    data.setup("test")
    data.configure(data_config)
    return data


def set_progress(data, epoch=0, done=0, world_size=1, rank=0):
    """Attach a trainer that has finished `done` batches of an epoch."""
    progress = SimpleNamespace(current=SimpleNamespace(processed=done))
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    data.trainer = SimpleNamespace(world_size=world_size, global_rank=rank, current_epoch=epoch, fit_loop=loop)
    return data
