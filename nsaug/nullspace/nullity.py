"""Print the dimension of the exact nullspace for models of timm's ViT families.

python -m nsaug.nullspace.nullity                                   random weights: the dimension by shape alone
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
"""timm name: model arguments that keep the model small. Only the patch embedding matters here."""


def nullity(name: str, pretrained: bool, tolerance: float) -> list[str]:
    """Return a table row: model, patch, its number of values, width, rank, nullity; or model and error message."""
    try:
        vit = build_vit(name, pretrained=pretrained, args=None if pretrained else FAMILIES.get(name))
        null = ExactNullspace(vit, tolerance)
    except UserError as error:
        return [name, str(error)]
    values = null.rank + null.dimension
    return [name, "x".join(map(str, null.patch)), str(values), str(null.width), str(null.rank), str(null.dimension)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(FAMILIES), help="timm names; default: one per family")
    parser.add_argument("--pretrained", action="store_true", help="use the hub's weights instead of random ones")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=TOLERANCE,
        help="singular values below this fraction of the largest count as 0",
    )
    args = parser.parse_args()
    table = Table(title=f"singular values below {args.tolerance:g} of the largest count as 0", title_justify="left")
    for heading in ("model", "patch", "values", "width", "rank", "nullity"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    rows = [nullity(name, args.pretrained, args.tolerance) for name in args.models]
    failed = [row for row in rows if len(row) == 2]
    for row in rows:
        table.add_row(*(row if row not in failed else [row[0], *"-----"]))
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    for name, reason in failed:
        print(f"{name}: {reason}")
    if len(failed) == len(rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
