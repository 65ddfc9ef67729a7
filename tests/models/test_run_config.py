"""A config.json from a stranger is read without executing anything, or refused in one line."""

import copy
import json
import os
import random

import pytest

from nsaug.models import run_config
from nsaug.models.factory import build_vit
from nsaug.models.run_config import model_arg_names, read_run_config, read_transformers_config
from nsaug.models.weights import read_config, read_metadata, save_config, save_weights
from nsaug.utils.errors import UserError
from tests.conftest import TINY, tiny_vit

METADATA = {
    "name": "clean",
    "method": "clean",
    "seed": 3,
    "data": {"name": "folder", "args": {"root": "/images", "classes": ["cat", "dög"], "hflip": 0.5}},
    "class_names": ["cat", "dög"],
    "settings": {"ema": 0.9, "optim": {"betas": [0.9, 0.999]}, "start": None},
    "wandb": {"id": "a1b2", "project": "nsaug", "entity": None, "online": False},
}


@pytest.fixture
def file(tmp_path):
    """The config.json of a run."""
    vit = tiny_vit()
    save_config(tmp_path, vit, METADATA)
    save_weights(tmp_path, vit.state_dict())
    return tmp_path / "config.json"


def change(file, path, value):
    """Write the value to an entry such as `nsaug.data.name`; an Ellipsis deletes it."""
    content = json.loads(file.read_text())
    *parents, last = path.split(".")
    node = content
    for key in parents:
        node = node.setdefault(key, {})
    if value is ...:
        del node[last]
    else:
        node[last] = value
    file.write_text(json.dumps(content))


def refusal(file, may_be_valid=False) -> str | None:
    """The one line that refuses a file, without its path; None for a file that is read."""
    try:
        read_run_config(file)
    except UserError as error:
        line = str(error)
    else:
        assert may_be_valid
        return None
    assert line.startswith(str(file))
    assert line.isprintable()
    assert len(line) < len(str(file)) + 500
    return line.removeprefix(str(file))


def test_what_a_run_records_is_read_back(file):
    assert read_metadata(file.parent) == METADATA | {"patch_embed": "patch_embed"}
    config = read_config(file.parent)
    assert config["architecture"] == "vit_tiny_patch16_224"
    assert config["model_args"].items() >= TINY.items()
    assert config["pretrained_cfg"]["input_size"] == (3, 8, 8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", ": not valid JSON"),
        (b'{"architecture": ', ": not valid JSON"),
        (b"\x89PNG\r\n\x1a\n\x00\xff", ": not valid JSON"),
        (b"[" * 100_000, ": not valid JSON (recursion limit"),
        (b'{"nsaug": {"settings": ' + b'{"a":' * 10_000 + b"1" + b"}" * 10_002, ": not valid JSON (recursion limit"),
        (b'{"nsaug": {"seed": ' + b"9" * 10_000 + b"}}", ": not valid JSON (number out of range"),
        (b'{"nsaug": {"name": "\\ud800"}}', ": not valid JSON"),
        (b"[]", ": should be an object"),
        (b'"config"', ": should be an object"),
        (b"null", ": should be an object"),
        (b'{"nsaug": {}}', ": architecture is missing"),
        (b'{"nsaug": 3}', ": nsaug=3 should be an object"),
        (b'{"architecture": "x", "pretrained_cfg": []}', ": pretrained_cfg should be an object"),
    ],
)
def test_invalid_files_are_refused(tmp_path, content, message):
    file = tmp_path / "config.json"
    file.write_bytes(content)
    assert refusal(file).startswith(message)


def test_special_and_huge_files_are_refused(tmp_path):
    file = tmp_path / "config.json"
    os.mkfifo(file)
    assert refusal(file).startswith(" cannot be read (it is not a regular file)")
    file.unlink()
    file.mkdir()
    assert refusal(file).startswith(" cannot be read (it is not a regular file)")
    file.rmdir()
    with open(file, "wb") as sparse:
        sparse.truncate(run_config.MAX_BYTES + 1)
    assert refusal(file).startswith(" is larger than 16 MB")


def test_config_of_another_program_counts_as_none(tmp_path):
    file = tmp_path / "config.json"
    file.write_text('{"architectures": ["ViTForImageClassification"], "model_type": "vit"}')
    assert read_run_config(file) is None
    file.write_text('{"image_size": [224, 224], "pretrained_cfg": 3}')
    assert read_run_config(file) is None
    assert read_transformers_config(file) is None


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("architecture", ..., ": architecture is missing"),
        ("architecture", "hf-hub:stranger/model", ": architecture='hf-hub:stranger/model' is not a timm model"),
        ("architecture", "local-dir:/tmp/model", ": architecture='local-dir:/tmp/model' is not a timm model"),
        ("architecture", "vit_tiny_patch16_224.augreg_in21k", ": architecture='vit_tiny_patch16_224.augreg_in21k' is"),
        ("architecture", "../vit_tiny_patch16_224", ": architecture='../vit_tiny_patch16_224' is not a timm model"),
        ("architecture", ["vit_tiny_patch16_224"], ": architecture should be a valid string"),
        ("model_args.depth", 10**9, ": model_args.depth 1000000000 should be from -65,536 to 65,536"),
        ("model_args.depth", float("nan"), ": model_args.depth nan should be"),
        ("model_args.depth", {"_target_": "os.getpid"}, ": model_args.depth should be a number, a name, or a list"),
        ("model_args.depth", [[[[1]]]], ": model_args.depth should be a number, a name, or a list"),
        ("model_args.act_layer", "os.system", ": model_args.act_layer 'os.system' should be a name"),
        ("model_args.act_layer", "https://example.com", ": model_args.act_layer 'https://example.com' should be"),
        ("pretrained_cfg.std", [-1, 1, 1], ": pretrained_cfg.std[0]=-1 should be greater than 0"),
        ("pretrained_cfg.mean", [0.5, 0.5], ": pretrained_cfg.mean[2] is missing"),
        ("pretrained_cfg.mean", [float("nan")] * 3, ": pretrained_cfg.mean[0]=nan should be a finite number"),
        ("pretrained_cfg.crop_pct", 0, ": pretrained_cfg.crop_pct=0 should be greater than or equal to 0.1"),
        ("pretrained_cfg.crop_pct", True, ": pretrained_cfg.crop_pct should be a number, not true"),
        ("pretrained_cfg.input_size", [1, 8, 8], ": pretrained_cfg.input_size[0]=1 should be 3"),
        ("pretrained_cfg.input_size", [3, 8, 10**9], ": pretrained_cfg.input_size[2]=1000000000 should be less"),
        ("pretrained_cfg.interpolation", "random", ": pretrained_cfg.interpolation='random' should be 'nearest'"),
        ("nsaug.name", "\x1b[2J", r": nsaug.name '\x1b[2J' has control characters"),
        ("nsaug.name", "a\nerror: b", r": nsaug.name 'a\nerror: b' has control characters"),
        ("nsaug.name", "", ": nsaug.name='' String should have at least 1 character"),
        ("nsaug.name", "x" * 10**6, ": nsaug.name='xxx"),
        ("nsaug.seed", True, ": nsaug.seed=True should be a valid integer"),
        ("nsaug.seed", "0", ": nsaug.seed='0' should be a valid integer"),
        ("nsaug.seed", 2**32, ": nsaug.seed=4294967296 should be less than 4294967296"),
        ("nsaug.class_names", [], ": nsaug.class_names is empty"),
        ("nsaug.class_names", ["cat", "cat"], ": nsaug.class_names cat is listed twice"),
        ("nsaug.class_names", ["cat", 1], ": nsaug.class_names[1]=1 should be a valid string"),
        ("nsaug.settings", [], ": nsaug.settings should be an object"),
        ("nsaug.settings.ema", "%n", ": nsaug.settings.ema='%n' should be a valid number"),
        ("nsaug.settings.optim", {"lr\n": 1}, r": nsaug.settings 'lr\n' has control characters"),
        ("nsaug.data", {"_target_": "os.system"}, ": nsaug.data.name is missing"),
        ("nsaug.data.args", ["a"], ": nsaug.data.args should be an object"),
        ("nsaug.data.args.root", "a\x00b", r": nsaug.data.args.root 'a\x00b' has control characters"),
        ("nsaug.wandb.id", "../../run", ": nsaug.wandb.id '../../run' should be a name"),
        ("nsaug.wandb.entity", "https://example.com/", ": nsaug.wandb.entity 'https://example.com/' should be"),
        ("nsaug.wandb", {"id": "a"}, ": nsaug.wandb.project is missing"),
        ("nsaug.patch_embed", 3, ": nsaug.patch_embed=3 should be a valid string"),
    ],
)
def test_invalid_entries_are_refused(file, path, value, message):
    change(file, path, value)
    assert refusal(file).startswith(message)


@pytest.mark.parametrize(
    "name",
    [
        "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "hf_hub_id", "url",
        "file", "features_only", "feature_cls", "out_indices", "pretrained_filter_fn", "model_cfg", "kwargs_filter",
        "scriptable", "pruned", "device", "self",
    ],
)  # fmt: skip
def test_arguments_of_timms_factory_are_refused(file, name):
    change(file, f"model_args.{name}", True)
    assert refusal(file).startswith(f": model_args.'{name}' is not an argument of vit_tiny_patch16_224")


def test_arguments_of_several_architectures_are_known():
    """Some constructors take **kwargs or a configuration object."""
    for architecture, name in {
        "vit_tiny_patch16_224": "reg_tokens",
        "deit_tiny_distilled_patch16_224": "depth",
        "swin_tiny_patch4_window7_224": "window_size",
        "mixer_s16_224": "num_blocks",
        "naflexvit_base_patch16_gap": "embed_dim",
        "pvt_v2_b0": "depths",
        "twins_pcpvt_small": "img_size",
    }.items():
        assert name in model_arg_names(architecture)


def test_sources_of_weights_are_ignored(file, monkeypatch):
    """timm would download or load what these entries of pretrained_cfg name."""
    sources = {
        "url": "https://example.com/weights.pth", "hf_hub_id": "stranger/model", "file": "evil.pt", "source": "hf-hub",
        "hf_hub_filename": "evil.bin", "custom_load": True, "state_dict": {"a": 1}, "label_names": ["\x1b"],
    }  # fmt: skip
    for key, value in sources.items():
        change(file, f"pretrained_cfg.{key}", value)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("no network"))
    assert not sources.keys() & read_config(file.parent)["pretrained_cfg"].keys()
    vit = build_vit("vit_tiny_patch16_224", checkpoint=str(file.parent), args=TINY | {"patch_size": 2})
    assert vit.model.num_classes == 10


def test_damaged_files_are_read_or_refused(file):
    """Cut, with entries deleted or replaced at random; always the same ones."""
    generator = random.Random(0)
    original = json.loads(file.read_text())
    values = [
        None,
        True,
        -1,
        10**30,
        1e308,
        "",
        "\x00",
        "a" * 3000,
        [],
        {},
        [[]],
        {"_target_": "os.abort"},
        "${oc.env:HOME}",
    ]
    refused = 0
    for _ in range(400):
        content = copy.deepcopy(original)
        for _ in range(generator.choice([1, 1, 3])):
            container, key = generator.choice(list(entries(content)))
            if generator.random() < 0.3:
                del container[key]
            else:
                container[key] = generator.choice(values)
        text = json.dumps(content)
        file.write_text(text[: generator.choice([len(text), len(text), generator.randrange(len(text))])])
        refused += refusal(file, may_be_valid=True) is not None
    assert 100 < refused < 400


def entries(node):
    """All (container, key) pairs of a JSON value."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield node, key
        yield from entries(value)
