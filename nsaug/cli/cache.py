"""List or delete a cache of evaluation results.

python -m nsaug.cli.cache outputs/evaluate/cache           blocks and sizes by model and benchmark
python -m nsaug.cli.cache outputs/evaluate/cache --clear   delete all results of this version
"""

import argparse
import os
import shutil
from collections import Counter
from pathlib import Path

from nsaug.evaluation.cache import VERSION, ResultCache


def main() -> None:
    """List or clear a cache."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clear", action="store_true", help="delete all results")
    args = parser.parse_args()
    cache = ResultCache(args.folder)
    if not os.path.isdir(cache.folder):
        parser.exit(1, f"error: {args.folder} is not a cache of this version: it has no folder {VERSION}\n")
    if args.clear:
        shutil.rmtree(cache.folder)
        return
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for title, path in cache.titles():
        counts[title] += 1
        sizes[title] += path.stat().st_size
    for title, count in counts.items():
        print(f"{count:7,} blocks {sizes[title] / 2**20:9.1f} MiB  {title}")


if __name__ == "__main__":
    main()
