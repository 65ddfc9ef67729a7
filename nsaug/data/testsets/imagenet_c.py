"""ImageNet-C, ImageNet-3DCC and ImageNet-C-bar as they are published."""

from pathlib import Path

from nsaug.data.dataset import ImageSet
from nsaug.data.files import FileLoader, folder_names, labeled_files, relative_ids
from nsaug.data.testsets.stored_corruptions import StoredCorruption
from nsaug.utils.files import is_dir


class CorruptionFolders(StoredCorruption):
    """root/CORRUPTION/SEVERITY/WNID/, or the same in a folder of root; 224 px."""

    stored_size = 224
    images_expected = 50_000

    def list_images(self) -> ImageSet:
        folder = self._corruption_folder() / str(self.severity)
        if not is_dir(folder):
            raise self.missing(f"there is no folder {folder}")
        paths, labels = labeled_files(folder, {wnid: label for label, wnid in enumerate(self.class_names)})
        if not paths:
            raise self.missing(f"{folder} has no images in WNID/")
        return ImageSet(relative_ids(paths, folder), labels, FileLoader(paths))

    def _corruption_folder(self) -> Path:
        for folder in (self.root, *(self.root / name for name in folder_names(self.root))):
            if is_dir(folder / self.corruption):
                return folder / self.corruption
        raise self.missing(f"there is no folder {self.root / self.corruption}, nor one in a folder of {self.root}")


class ImageNetC(CorruptionFolders):
    """root/CORRUPTION/SEVERITY/WNID/, or root/noise/CORRUPTION/... as unpacked (arXiv 1903.12261)."""

    title = "ImageNet-C"
    folder = "imagenet-c"
    homepage = "https://zenodo.org/records/2235448"


class ImageNet3DCC(CorruptionFolders):
    """Corruptions that follow the geometry of the scene: root/CORRUPTION/SEVERITY/WNID/ (arXiv 2203.01441)."""

    title = "ImageNet-3DCC"
    folder = "imagenet-3dcc"
    homepage = "https://3dcommoncorruptions.epfl.ch"
    corruptions = (
        "near_focus", "far_focus", "fog_3d", "flash", "color_quant", "low_light", "xy_motion_blur", "z_motion_blur",
        "iso_noise", "bit_error", "h265_abr", "h265_crf",
    )  # fmt: skip
    extra_corruptions = ()


class ImageNetCBar(CorruptionFolders):
    """Corruptions chosen to differ from those of ImageNet-C: root/CORRUPTION/SEVERITY/WNID/ (arXiv 2102.11273)."""

    title = "ImageNet-C-bar"
    folder = "imagenet-c-bar"
    homepage = "https://github.com/facebookresearch/augmentation-corruption"
    corruptions = (
        "blue_noise_sample", "brownish_noise", "caustic_refraction", "checkerboard_cutout", "cocentric_sine_waves",
        "inverse_sparkles", "perlin_noise", "plasma_noise", "single_frequency_greyscale", "sparkles",
    )  # fmt: skip
    extra_corruptions = ()
