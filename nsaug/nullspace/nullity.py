"""The exact nullspace's dimension over timm's ViT families.

python -m nsaug.nullspace.nullity                                   random weights: what the shapes alone leave
python -m nsaug.nullspace.nullity --pretrained vit_base_patch16_224.augreg_in21k_ft_in1k
"""

import argparse
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from nsaug.models.factory import build_vit
from nsaug.nullspace.exact import TOLERANCE, ExactNullspace
from nsaug.utils.errors import UserError

SHALLOW: dict[str, Any] = {"depth": 1}
FAMILIES: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": SHALLOW,
    "vit_small_patch32_224": SHALLOW,
    "vit_small_patch16_224": SHALLOW,
    "vit_base_patch32_224": SHALLOW,
    "vit_base_patch16_224": SHALLOW,
    "vit_base_patch8_224": SHALLOW,
    "vit_large_patch32_224": SHALLOW,
    "vit_large_patch16_224": SHALLOW,
    "vit_large_patch14_224": SHALLOW,
    "vit_small_patch14_dinov2": SHALLOW,
    "vit_base_patch14_dinov2": SHALLOW,
    "deit_small_patch16_224": SHALLOW,
    "deit3_base_patch16_224": SHALLOW,
    "beit_base_patch16_224": SHALLOW,
    "eva02_small_patch14_224": SHALLOW,
    "vit_base_patch32_clip_224": SHALLOW,
    "swin_tiny_patch4_window7_224": {"depths": (1, 1, 1, 1)},
    "pvt_v2_b0": {},
    "xcit_nano_12_p16_224": SHALLOW,
}
"""One block each where only the shapes matter: the patch embedding is all that is looked at."""


def nullity(name: str, pretrained: bool, tolerance: float) -> list[str]:
    """A row of the table: model, patch, its values, width, rank, nullity; or model and why there is none."""
    try:
        vit = build_vit(name, pretrained=pretrained, args=None if pretrained else FAMILIES.get(name))
        found = ExactNullspace(vit, tolerance)
    except UserError as error:
        return [name, str(error)]
    values = found.rank + found.dimension
    return [name, "x".join(map(str, found.patch)), str(values), str(found.width), str(found.rank), str(found.dimension)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "models", nargs="*", default=list(FAMILIES), help="timm names; all families where none is given"
    )
    parser.add_argument("--pretrained", action="store_true", help="the hub's weights instead of random ones")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="below this share of the largest: 0")
    options = parser.parse_args()
    table = Table(title=f"singular values below {options.tolerance:g} of the largest count as 0", title_justify="left")
    for heading in ("model", "patch", "values", "width", "rank", "nullity"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    rows = [nullity(name, options.pretrained, options.tolerance) for name in options.models]
    refused = [row for row in rows if len(row) == 2]
    for row in rows:
        table.add_row(*(row if row not in refused else [row[0], *"-----"]))
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    for name, reason in refused:
        print(f"{name}: {reason}")
    if len(refused) == len(rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
