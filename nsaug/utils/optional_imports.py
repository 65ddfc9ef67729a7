"""Import of optional dependencies."""

import importlib
from typing import Any

from nsaug.utils.errors import UserError


def optional_import(extra: str, module: str) -> Any:
    """Import a module that is installed by one of nsaug's extras.

    Raises:
        UserError: the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"this needs {module}: pip install 'nsaug[{extra}]'") from error
