import json

import numpy as np
import pytest
from PIL import Image
from timm.data import ImageNetInfo

from nsaug.data import MissingData, ObjectNet, UnreadableImage
from nsaug.data.names import wnids
from nsaug.utils.errors import UserError
from tests.data.helpers import open_test
from tests.data.testsets.helpers import CONFIG

INFO = ImageNetInfo("imagenet-1k")


def save_objectnet(sample, root, shift=0):
    """Save four classes with mappings as in the archive.

    One is two of ImageNet's classes, one is none of them, and one has no images.
    """
    lines = [INFO.index_to_description(label) for label in range(1000)]
    order = np.random.default_rng(0).permutation(1000)  # ImageNet 2012 orders its classes in another way
    mappings = root / "mappings"
    mappings.mkdir(parents=True)
    (mappings / "imagenet_to_label_2012_v2").write_text("".join(f"{lines[label]}\n" for label in order))
    line_numbers = {str(label): int(line) + shift for line, label in enumerate(order)}
    (mappings / "pytorch_to_imagenet_2012_id.json").write_text(json.dumps(line_numbers))
    names = {"alarm_clock": "Alarm clock", "banana": "Banana", "briefcase": "Briefcase", "tie": "Tie"}
    shared = {
        "Alarm clock": f"{lines[409]}; {lines[530]}",
        "Banana": lines[954],
        "Tie": f"{lines[457]}; {lines[906]}",
    }
    (mappings / "folder_to_objectnet_label.json").write_text(json.dumps(names))
    (mappings / "objectnet_to_imagenet_1k.json").write_text(json.dumps(shared))
    for folder, labels in {"alarm_clock": [409, 530], "banana": [954], "briefcase": [414]}.items():
        for label in labels:
            framed = Image.new("RGB", (300, 260), (255, 0, 0))
            with Image.open(sample[label]) as image:
                framed.paste(image.convert("RGB").resize((298, 258)), (1, 1))
            (root / "images" / folder).mkdir(parents=True, exist_ok=True)
            framed.save(root / "images" / folder / f"{label}.png")


def test_labels_follow_the_mappings(sample, tmp_path):
    save_objectnet(sample, tmp_path)
    data = open_test(ObjectNet(root=str(tmp_path)), CONFIG)
    assert dict(zip(data.images.ids, data.images.labels, strict=True)) == {
        "images/alarm_clock/409.png": (409, 530),
        "images/alarm_clock/530.png": (409, 530),
        "images/banana/954.png": (954,),
    }  # fmt: skip
    assert data.class_subset == [409, 457, 530, 906, 954]
    assert data.notes[0] == f"2 of 5 classes have no images ({wnids()[457]}, {wnids()[906]})"


def test_red_border_is_cropped(sample, tmp_path):
    save_objectnet(sample, tmp_path)
    data = ObjectNet(root=str(tmp_path))
    data.setup()
    for index in range(3):
        image = np.array(data.images.load(index))
        assert image.shape == (256, 296, 3)
        edge = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        assert not (edge == (255, 0, 0)).all(-1).any()


def test_wrong_mappings_are_refused(sample, tmp_path):
    save_objectnet(sample, tmp_path, shift=1)
    with pytest.raises(UserError, match="unpack the published archive again"):
        ObjectNet(root=str(tmp_path)).setup()
    line_numbers = tmp_path / "mappings" / "pytorch_to_imagenet_2012_id.json"
    for text in ("{", "5", '["a"]', '{"0": "x"}', '{"0": [1]}', '{"0": null}', ""):
        line_numbers.write_text(text)
        with pytest.raises(UserError, match=r"2012_id.json: .*: unpack the published archive again"):
            ObjectNet(root=str(tmp_path)).setup()
    line_numbers.unlink()
    with pytest.raises(MissingData, match=r"ObjectNet: there is no file .*; it is published at https://objectnet.dev"):
        ObjectNet(root=str(tmp_path)).setup()


def test_image_without_content_is_unreadable(sample, tmp_path):
    save_objectnet(sample, tmp_path)
    Image.new("RGB", (300, 4)).save(tmp_path / "images" / "banana" / "954.png")
    data = ObjectNet(root=str(tmp_path))
    data.setup()
    with pytest.raises(UnreadableImage, match="banana/954.png has 300 x 4 px, all of them border"):
        data.images.load(data.images.ids.index("images/banana/954.png"))
