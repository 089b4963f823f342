"""The packages of the formats, which are optional."""

import importlib
from typing import Any

from dilax.errors import UserError, reason


def required(module: str, fmt: str) -> Any:
    """Import a module that a format needs.

    Raises:
        UserError: if it cannot be imported, saying which extra to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UserError(
            f"export: format {fmt!r} needs {package}, which cannot be imported ({reason(error)}); install the extra of that name: "
            f'pip install -e ".[{fmt}]".'
        ) from error
