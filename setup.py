"""Ship the top-level conf/ as nsaug/conf in the wheel; everything else is in pyproject.toml."""

from setuptools import find_namespace_packages, find_packages, setup

CONF = ["nsaug.conf", *(f"nsaug.conf.{folder}" for folder in find_namespace_packages("conf"))]

setup(packages=[*find_packages(include=["nsaug*"]), *CONF], package_dir={"nsaug.conf": "conf"})
