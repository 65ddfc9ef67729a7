import torch

from nsaug.models.factory import build_vit
from nsaug.nullspace.pixel_space import to_pixels


@torch.no_grad()
def test_noise_that_is_an_images_becomes_that_image(vit, images):
    """12 values per patch, 24 per embedding: a change of the image is recovered whole."""
    change = 0.1 * torch.randn_like(images)
    noise = vit.activations(images + change) - vit.activations(images)
    torch.testing.assert_close(to_pixels(vit, noise), change)


@torch.no_grad()
def test_other_noise_becomes_the_nearest_image(vit, images):
    noise = torch.randn(6, 16, 24, dtype=torch.float64)
    change = to_pixels(vit, noise)

    def distance(pixels):
        return (vit.activations(images + pixels) - vit.activations(images) - noise).norm()

    assert all(distance(change) < distance(change + 1e-3 * torch.randn_like(change)) for _ in range(20))


def test_a_patch_embedding_that_is_no_single_map_has_no_pixels():
    vit = build_vit("xcit_nano_12_p16_224", num_classes=4, img_size=32, args={"depth": 1})
    assert to_pixels(vit, torch.zeros(1, *vit.noise_shape())) is None
