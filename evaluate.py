"""Evaluate checkpoints or timm models: `python evaluate.py --help`."""

from nsaug.cli.evaluate import main

if __name__ == "__main__":
    main()
