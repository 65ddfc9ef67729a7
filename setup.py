"""Ship the top-level conf/ as nsaug/conf in the wheel; everything else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["nsaug*"]), "nsaug.conf"], package_dir={"nsaug.conf": "conf"})
