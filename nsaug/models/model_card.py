"""README.md beside the weights: the model card that the Hugging Face hub shows.

It is written from config.json alone. Evaluations replace their own part of the section Results.
"""

import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm

from nsaug import __version__
from nsaug.models.run_config import CONFIG, BaseWeights, RunConfig, RunMetadata, read_run_config
from nsaug.models.weights import read_metadata, resolve_path
from nsaug.utils.files import atomic_write, is_file
from nsaug.utils.text import markdown_text, preview, printable
from nsaug.utils.types import flatten

CARD = "README.md"
REPOSITORY = "USER/NAME"
"""Stands for the repository on the hub until the model is there."""
COMMON_LICENSES = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0")
LENGTH = ("trainer.max_epochs", "trainer.max_steps", "data.batch_size")
START, END = "<!-- results: evaluate.py writes the text from here on -->", "<!-- end of results -->"
NO_RESULTS = "Not evaluated yet. `python evaluate.py checkpoint=FOLDER` adds its table here.\n"
ARXIV = "[arXiv 2403.10476](https://arxiv.org/abs/2403.10476)"

TEMPLATE = """\
---
{front_matter}
---

# {title}

A vision transformer for image classification, trained by the method `{method}` of nsaug (*Approximate Nullspace
Augmented Finetuning for Robust Vision Transformers*, {arxiv}).

| | |
|---|---|
{facts}

config.json has all settings, and the names of the classes by index (`nsaug.class_names`).

## Results

{start}
{results}{end}

## Use

With timm alone:

```python
import timm

model = timm.create_model("hf-hub:{repository}", pretrained=True).eval()  # or "local-dir:FOLDER"
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
logits = model(transform(image).unsqueeze(0))  # image: a PIL.Image.Image in RGB
```

With nsaug, for noise and attacks; images are in [0, 1] and not normalized:

```python
from nsaug.models.noisy_vit import NoisyViT

vit = NoisyViT(model{norm_eps})
logits = vit(images)  # (B, 3, {height}, {width})
```

`nsaug-evaluate checkpoint=FOLDER` evaluates a local copy.

## License

{license}
"""


def find_base(model: Mapping[str, Any], checkpoint: str | None) -> BaseWeights | None:
    """The weights that a run starts from, for its config.json; None from scratch.

    Args:
        model: settings of the model, such as `name` and `pretrained`.
        checkpoint: a run's folder, whose own base is taken, or other weights, of which nothing is known.
    """
    unknown = BaseWeights(name=None, license=None)
    if checkpoint:
        return read_metadata(resolve_path(checkpoint).parent).get("base", unknown)
    if not model.get("pretrained"):
        return None
    name = str(model.get("name"))
    if not timm.is_model_pretrained(name):  # of a class of the user
        return unknown
    config = timm.get_pretrained_cfg(name)
    return BaseWeights(name=config.hf_hub_id, license=None if config.license == "unknown" else config.license)


def write_card(folder: Path) -> None:
    """Write the model card of the run in a folder, without results.

    Raises:
        UserError: invalid config.json.
    """
    config = read_run_config(folder / CONFIG)
    assert config is not None
    with atomic_write(folder / CARD) as tmp_path:
        tmp_path.write_text(render_card(config), encoding="utf-8")


def render_card(config: RunConfig) -> str:
    """The model card of a run, given its config.json."""
    run = config.get("nsaug", {})
    base = run.get("base", BaseWeights(name=None, license=None))
    size = config.get("pretrained_cfg", {}).get("input_size", (3, 224, 224))
    front_matter = [
        "library_name: timm",
        "pipeline_tag: image-classification",
        *(_license_lines(base["license"]) if base and base["license"] else []),
        *([f"base_model: {base['name']}"] if base and base["name"] else []),
        "tags:",
        *(f"- {tag}" for tag in ("image-classification", "timm", "nsaug", "robustness")),
    ]
    facts = _facts(config, run, base, size)
    norm_eps = run.get("norm_eps")
    return TEMPLATE.format(
        front_matter="\n".join(front_matter),
        title=_text(run.get("name", config["architecture"])),
        method=_text(run.get("method", "?")),
        arxiv=ARXIV,
        facts="\n".join(f"| {name} | {_text(value)} |" for name, value in facts.items() if value),
        start=START,
        results=NO_RESULTS,
        end=END,
        repository=REPOSITORY,
        norm_eps="" if norm_eps is None else f", norm_eps={norm_eps}",
        height=size[1],
        width=size[2],
        license=_license(base),
    )


def _facts(config: RunConfig, run: RunMetadata, base: BaseWeights | None, size: tuple[int, ...]) -> dict[str, str]:
    """The rows of the table: what the model is, and how it was trained."""
    settings = flatten(run.get("settings", {}))
    shown = {
        group: ", ".join(
            f"{key.removeprefix(f'{group}.')}={value}"
            for key, value in settings.items()
            if key.startswith(f"{group}.") and "_target_" not in key and value is not None
        )
        for group in ("method", "optim")
    }
    origin = "random weights" if base is None else base["name"]
    start = ", itself from ".join(map(str, filter(None, (settings.get("start"), origin))))
    classes = run.get("class_names", [])
    named = f"{len(classes):,} classes: {preview(classes, 10)}"
    splits = run.get("splits")
    images = f", {splits['train']['count']:,} training images" if splits else ""
    length = [f"{key}={settings[key]}" for key in LENGTH if settings.get(key) not in (None, -1)]
    return {
        "architecture": f"{config['architecture']}, images of {size[1]} x {size[2]} pixels",
        "started from": start,
        "data": f"{run['data']['name']}{images}, {named}" if "data" in run else "",
        "method": f"{run.get('method', '?')} ({shown['method']})" if shown["method"] else run.get("method", "?"),
        "optimizer": shown["optim"],
        "length": ", ".join(length),
        "seed": str(run.get("seed", "")),
        "versions": f"nsaug {__version__}, torch {version('torch')}, timm {version('timm')}",
    }


def _license_lines(name: str) -> list[str]:
    """Lines of the front matter: the hub knows the names of common licenses only."""
    return [f"license: {name}"] if name in COMMON_LICENSES else ["license: other", f"license_name: {name}"]


def _license(base: BaseWeights | None) -> str:
    if base and base["license"]:
        return f"The base weights ({base['name'] or 'other weights'}) have the license {base['license']}."
    reason = "The model was trained from scratch" if base is None else "The license of the base weights is not known"
    return f"{reason}. Replace this sentence by the license, and add it as `license:` to the first lines of this file."


def _text(value: str) -> str:
    return markdown_text(printable(value))


def add_results(folder: Path, title: str, text: str) -> bool:
    """Put the results of an evaluation into a run's model card, in place of those with the same title.

    Args:
        folder: of the run.
        title: what was evaluated; the heading of this part.
        text: its content, in Markdown without headings.

    Returns:
        False if the folder has no model card, or one without a section for results: nothing is written.

    Raises:
        OSError: the card cannot be read or written.
    """
    if not is_file(folder / CARD):
        return False
    card = (folder / CARD).read_text(encoding="utf-8", errors="surrogateescape")
    before, start, rest = card.partition(START)
    results, end, after = rest.partition(END)
    if not end:
        return False
    parts = dict(re.findall(r"^### ([^\n]*)\n(.*?)(?=^### |\Z)", results, flags=re.MULTILINE | re.DOTALL))
    parts[_text(title)] = f"\n{text.strip()}\n\n"
    results = "".join(f"### {heading}\n{content}" for heading, content in parts.items())
    with atomic_write(folder / CARD) as tmp_path:
        tmp_path.write_text(f"{before}{start}\n\n{results}{end}{after}", encoding="utf-8", errors="surrogateescape")
    return True
