"""Packages that nsaug does without until something of theirs is asked for."""

import importlib
from typing import Any

from nsaug.utils.errors import UserError


def optional_import(name: str, module: str) -> Any:
    """A module that an extra of this package installs.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"this needs {module}: pip install 'nsaug[{name}]'") from error
