"""Cue-conflict stimuli: the shape of one category with the texture of another."""

from nsaug.data.dataset import ImageSet, Label
from nsaug.data.testsets.published import ClassFolders
from nsaug.data.testsets.shape_texture import CATEGORIES, CLASS_INDICES, shape_texture_labels
from nsaug.utils.text import preview


class CueConflict(ClassFolders):
    """root/SHAPE/SHAPEn-TEXTUREm.png, 224 px (Geirhos et al., arXiv 1811.12231).

    Labels are the ImageNet classes of the shape's category; `shape_texture.shape_texture_labels` gives both categories
    of an image's id. Images whose shape and texture are of the same category are left out, as in the paper.
    """

    title = "Cue conflict"
    folder = "cue-conflict"
    homepage = "https://github.com/rgeirhos/texture-vs-shape"
    subdirs = ("", "style-transfer-preprocessed-512", "stimuli/style-transfer-preprocessed-512")
    stored_size = 224
    images_expected = 1_200

    def label_index(self) -> dict[str, Label | None]:
        return dict(CLASS_INDICES)

    def list_images(self) -> ImageSet:
        images = super().list_images()
        categories = [shape_texture_labels(image_id) for image_id in images.ids]
        return images.subset(index for index, (shape, texture) in enumerate(categories) if shape != texture)

    def find_missing(self, images: ImageSet) -> list[str]:
        present = {shape_texture_labels(image_id)[0] for image_id in images.ids}
        empty = [category for index, category in enumerate(CATEGORIES) if index not in present]
        notes = [f"{len(empty)} of {len(CATEGORIES)} categories have no images ({preview(empty)})"] if empty else []
        if len(images) < self.images_expected:
            notes.append(f"{len(images):,} of {self.images_expected:,} images are there")
        return notes
