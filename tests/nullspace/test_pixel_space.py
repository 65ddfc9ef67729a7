import torch
from torch import nn

from nsaug.models.factory import build_vit
from nsaug.nullspace.pixel_space import patch_convolution, patch_projection, to_pixels


@torch.no_grad()
def test_noise_from_an_image_change_is_inverted(vit, images):
    """Patches have 12 values and embeddings 24, so the change of the image can be recovered."""
    change = 0.1 * torch.randn_like(images)
    noise = vit.activations(images + change) - vit.activations(images)
    torch.testing.assert_close(to_pixels(vit, noise), change)


@torch.no_grad()
def test_other_noise_gives_the_nearest_embeddings(vit, images):
    noise = torch.randn(6, 16, 24, dtype=torch.float64)
    change = to_pixels(vit, noise)

    def distance(pixels):
        return (vit.activations(images + pixels) - vit.activations(images) - noise).norm()

    assert all(distance(change) < distance(change + 1e-3 * torch.randn_like(change)) for _ in range(20))


def test_several_convolutions_give_none():
    vit = build_vit("xcit_nano_12_p16_224", num_classes=4, img_size=32, args={"depth": 1})
    assert to_pixels(vit, torch.zeros(1, *vit.noise_shape())) is None


def test_layers_after_the_convolution_give_none(vit):
    assert patch_projection(vit) is vit.model.patch_embed.proj
    vit.model.patch_embed.norm = nn.LayerNorm(24)
    assert patch_projection(vit) is None
    assert patch_convolution(vit) is vit.model.patch_embed.proj


@torch.no_grad()
def test_patch_embedding_with_another_name():
    vit = build_vit("mixer_s32_224", num_classes=4, img_size=64).eval()
    images = torch.rand(1, 3, 64, 64)
    change = to_pixels(vit, vit.activations(images) - vit.activations(torch.zeros_like(images)))
    # 3072 values per patch, 512 per embedding: the smallest change with the same embeddings
    assert change.norm() < images.norm()
    torch.testing.assert_close(vit.activations(change), vit.activations(images), atol=1e-4, rtol=1e-3)
