"""`python -m nsaug --version`."""

from nsaug.cli.versions import main

if __name__ == "__main__":
    main()
