"""ImageNet-C as it is published."""

import os
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from nsaug.data.dataset import ImageSet, read_image
from nsaug.data.files import file_fingerprint, folder_names, labeled_files, relative_ids
from nsaug.data.testsets.stored_corruptions import StoredCorruption


class ImageNetC(StoredCorruption):
    """root/CORRUPTION/SEVERITY/WNID/, or root/noise/CORRUPTION/... as unpacked (arXiv 1903.12261); 224 px.

    Images that are missing at one severity are left out at all, so that severities have the same images.
    """

    title = "ImageNet-C"
    homepage = "https://zenodo.org/records/2235448"
    stored_size = 224
    images_expected = 50_000

    def list_images(self) -> ImageSet:
        index = {wnid: label for label, wnid in enumerate(self.class_names)}
        folders = [self._corruption_folder() / str(severity) for severity in self.severities]
        present = []
        for folder in folders:
            if not folder.is_dir():
                raise self.missing(f"there is no folder {folder}")
            paths, _ = labeled_files(folder, index)
            present.append(set(relative_ids(paths, folder)))
        ids = sorted(set.intersection(*present))
        if not ids:
            raise self.missing(f"{self._corruption_folder()} has no images in SEVERITY/WNID/")
        labels = [index[image_id.split("/")[0]] for image_id in ids]
        return ImageSet(ids, labels, _SeverityFolders([str(folder) for folder in folders], ids))

    def _corruption_folder(self) -> Path:
        for folder in (self.root, *(self.root / name for name in folder_names(self.root))):
            if (folder / self.corruption).is_dir():
                return folder / self.corruption
        raise self.missing(f"there is no folder {self.root / self.corruption}, nor one in a folder of {self.root}")


@dataclass(frozen=True)
class _SeverityFolders:
    """Loads an image at every severity, from one folder per severity."""

    folders: list[str]
    ids: list[str]

    def __call__(self, index: int) -> list[Image.Image]:
        return [read_image(path, path) for path in self._paths(index)]

    def fingerprint(self, index: int) -> str:
        return " ".join(map(file_fingerprint, self._paths(index)))

    def _paths(self, index: int) -> list[str]:
        return [os.path.join(folder, self.ids[index]) for folder in self.folders]
