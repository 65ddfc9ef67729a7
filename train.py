"""Finetune a vision transformer: `python train.py --help`."""

from nsaug.cli.train import main

if __name__ == "__main__":
    main()
