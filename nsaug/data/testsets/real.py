"""ReaL: ImageNet's validation images with reassessed labels."""

import json
from importlib.resources import files
from pathlib import Path

from nsaug.data.dataset import ImageSet
from nsaug.data.files import FileLoader, find_images, relative_ids
from nsaug.data.names import VAL_IMAGE_NAME
from nsaug.data.testsets.published import PublishedDataset
from nsaug.utils.files import is_dir


class ImageNetReaL(PublishedDataset):
    """root/val/**/ILSVRC2012_val_N.JPEG with sets of correct labels (Beyer et al., arXiv 2006.07159).

    timm ships the labels, by image number. Images without a label are left out, as in the paper.
    """

    title = "ReaL"
    folder = "imagenet"
    homepage = "https://github.com/google-research/reassessed-imagenet, for the images of https://image-net.org"
    condition = "relabeled"
    images_expected = 46_837

    def list_images(self) -> ImageSet:
        folder = self.root / "val" if is_dir(self.root / "val") else self.root
        labels = json.loads((files("timm.data") / "_info" / "imagenet_real_labels.json").read_text())
        matches = {path: match for path in find_images(folder) if (match := VAL_IMAGE_NAME.search(Path(path).name))}
        if not matches:
            raise self.missing(
                f"labels belong to names such as ILSVRC2012_val_00000001.JPEG, and {folder} has no such image"
            )
        by_number = {f"{number:08d}": tuple(label) for number, label in enumerate(labels, 1)}
        label_sets = {path: label for path, match in matches.items() if (label := by_number.get(match[1]))}
        paths = list(label_sets)
        return ImageSet(relative_ids(paths, self.root), list(label_sets.values()), FileLoader(paths))
