"""Records of which images a run was trained on and which it held out for validation."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nsaug.data.fingerprints import hash_bytes
from nsaug.utils.rng import uniform_from_text

VAL_SPLIT_SEED = 0
"""Fixed, so that all runs are compared on the same validation images."""
TITLES = {"train": "training images", "val": "validation images"}


def is_held_out(image_id: str, fraction: float) -> bool:
    """Whether an image belongs to the validation split; depends on its id alone, not on the other images."""
    return uniform_from_text(image_id, VAL_SPLIT_SEED) < fraction


def record_split(ids: Sequence[str]) -> dict[str, Any]:
    """Number of images and a hash of their ids, in any order, as plain JSON values."""
    content = "\n".join(sorted(ids)).encode(errors="surrogatepass")
    return {"count": len(ids), "hash": hash_bytes(content)}


def split_changes(
    before: Mapping[str, Mapping[str, Any]], now: Mapping[str, Mapping[str, Any]], names: Iterable[str] = TITLES
) -> str:
    """Describe how recorded splits differ from those of now, in a few words; empty if they do not."""
    changes = []
    for name in names:
        old, new = before[name], now[name]
        if old["count"] != new["count"]:
            changes.append(f"{new['count']:,} {TITLES[name]} instead of {old['count']:,}")
        elif old["hash"] != new["hash"]:
            changes.append(f"{new['count']:,} {TITLES[name]} as before, but not the same ones")
    return ", ".join(changes)
