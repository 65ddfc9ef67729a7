"""List or delete a cache of evaluation results.

python -m nsaug.cli.cache outputs/evaluate/cache           blocks and sizes by model and benchmark
python -m nsaug.cli.cache outputs/evaluate/cache --clear   delete all results of this version
"""

import argparse
import shutil
from collections import Counter
from pathlib import Path

from nsaug.evaluation.cache import VERSION, ResultCache
from nsaug.utils.errors import os_reason
from nsaug.utils.files import is_dir
from nsaug.utils.text import printable


def main() -> None:
    """List or clear a cache."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clear", action="store_true", help="delete all results")
    parser.error = lambda message: parser.exit(1, f"error: {message}: see --help\n")  # type: ignore[method-assign]
    args = parser.parse_args()
    cache = ResultCache(args.folder)
    if not is_dir(cache.folder):
        parser.exit(1, f"error: {args.folder} is not a cache of this version: it has no folder {VERSION}\n")
    if args.clear:
        try:
            shutil.rmtree(cache.folder)
        except OSError as error:
            parser.exit(1, f"error: {cache.folder} cannot be deleted: {os_reason(error)}\n")
        return
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for title, path in cache.titles():
        counts[title] += 1
        sizes[title] += path.stat().st_size
    for title, count in counts.items():
        print(f"{count:7,} blocks {sizes[title] / 2**20:9.1f} MiB  {printable(title)}")


if __name__ == "__main__":
    main()
