import lightning as L
import pytest
import torch
from PIL import Image

from nsaug.data import Digits, InputConfig
from nsaug.data.transforms import stored_transform
from nsaug.utils.errors import UserError
from nsaug.utils.rng import seed_scope
from tests.data.helpers import CONFIG, config, fit_data


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5-inc1", "augmix-m3-w3", "original"])
def test_policies_augment_training_images_alone(policy):
    data = fit_data(Digits(auto_augment=policy, crop="none", hflip=0))
    expected = data.val_set[3][0]
    L.seed_everything(0, verbose=False)
    samples = [data.train_set[7][0] for _ in range(20)]
    assert len({image.numpy().tobytes() for image in samples}) > 5
    assert all(image.shape == (3, 8, 8) and 0 <= image.min() <= image.max() <= 1 for image in samples)
    assert torch.equal(data.val_set[3][0], expected)


def test_policy_works_at_full_strength():
    """timm posterizes to 0 bits at full strength; a Pillow version that refuses would end a run at a random step."""
    data = fit_data(Digits(auto_augment="rand-m10-n8-inc1"))
    for index in range(200):
        data.train_set[index]


def test_unknown_policy_is_refused():
    for policy in ("rand-x9", "foo", ""):
        data = Digits(auto_augment=policy)
        data.setup("fit")
        with pytest.raises(UserError, match=f"data.auto_augment={policy} is not a policy of timm"):
            data.configure(CONFIG)
    data = Digits()
    data.setup("fit")
    with pytest.raises(UserError, match=r"method\.policy=foo is not a policy of timm"):
        data.configure(CONFIG, num_views=3, view_augment="foo")


@pytest.mark.parametrize("crop", ["padded", "resized"])
def test_augmented_views_have_the_crop_and_flip_of_the_first(crop):
    """The first view is the image without augmentation; the others resemble it more than its mirror image."""
    options = {"crop": crop, "hflip": 0.5, "scale": (0.3, 0.6)}
    data = fit_data(Digits(**options), num_views=3, view_augment="augmix-m3-w3")
    plain = fit_data(Digits(**options))
    distances, others = [], []
    for index in range(40):
        with seed_scope(index):
            views = data.train_set[index][0]
        with seed_scope(index):
            alone = plain.train_set[index][0]
        assert views.shape == (3, 3, 8, 8)
        if crop == "resized":  # the crop is drawn before the augmentations
            assert torch.equal(views[0], alone) or torch.equal(views[0].flip(-1), alone)
        distances += [(views[0] - view).abs().mean() for view in views[1:]]
        others += [(views[0] - view.flip(-1)).abs().mean() for view in views[1:]]
    assert 0.005 < torch.stack(distances).mean() < 0.6 * torch.stack(others).mean()


@pytest.mark.parametrize("size", [16, 24])
def test_stored_images_keep_their_size_or_are_resized_whole(size):
    image = Image.new("RGB", (16, 16), (255, 0, 0))
    image.paste((0, 255, 0), (0, 0, 16, 4))
    pixels = stored_transform(16, InputConfig.from_timm(config(size, crop_pct=0.5)))(image)
    assert pixels.shape == (3, size, size)
    torch.testing.assert_close(pixels[1].mean(), torch.tensor(0.25), atol=0.01, rtol=0)
    with pytest.raises(UserError, match="stored at 16 x 16 px, this copy has one of 8 x 16 px: unpack"):
        stored_transform(16, InputConfig.from_timm(config(size)))(image.resize((8, 16)))
