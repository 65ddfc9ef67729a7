"""ImageNet-C as it is published."""

from pathlib import Path

from nsaug.data.dataset import ImageSet
from nsaug.data.files import FileLoader, folder_names, labeled_files, relative_ids
from nsaug.data.testsets.stored_corruptions import StoredCorruption


class CorruptionFolders(StoredCorruption):
    """root/CORRUPTION/SEVERITY/WNID/, or the same in a folder of root; 224 px."""

    stored_size = 224
    images_expected = 50_000

    def list_images(self) -> ImageSet:
        folder = self._corruption_folder() / str(self.severity)
        if not folder.is_dir():
            raise self.missing(f"there is no folder {folder}")
        paths, labels = labeled_files(folder, {wnid: label for label, wnid in enumerate(self.class_names)})
        if not paths:
            raise self.missing(f"{folder} has no images in WNID/")
        return ImageSet(relative_ids(paths, folder), labels, FileLoader(paths))

    def _corruption_folder(self) -> Path:
        for folder in (self.root, *(self.root / name for name in folder_names(self.root))):
            if (folder / self.corruption).is_dir():
                return folder / self.corruption
        raise self.missing(f"there is no folder {self.root / self.corruption}, nor one in a folder of {self.root}")


class ImageNetC(CorruptionFolders):
    """root/CORRUPTION/SEVERITY/WNID/, or root/noise/CORRUPTION/... as unpacked (arXiv 1903.12261)."""

    title = "ImageNet-C"
    homepage = "https://zenodo.org/records/2235448"
