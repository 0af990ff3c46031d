"""The published methods: each module holds one as `METHOD`, its experiment included; `method` is what all have.

Modules that start with `_` are shared by several methods and are none themselves.
"""

import importlib
import pkgutil

from data.errors import nearest
from pipelines.methods.method import Method, MethodError

_NOT_METHODS = ("method",)


def method_names() -> list[str]:
    """Names of the methods, in the order of the alphabet."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in names if not name.startswith("_") and name not in _NOT_METHODS)


def load_method(name: str) -> Method:
    """The method of this name, written with `-` or `_`.

    Raises:
        MethodError: there is no such method; names the nearest.
    """
    module, names = name.replace("-", "_"), method_names()
    if module not in names:
        hint = nearest(module, names) or f"; have {', '.join(names) or 'none'}"
        raise MethodError(f"{name!r}: no such method{hint}")
    found = importlib.import_module(f"pipelines.methods.{module}").METHOD
    assert isinstance(found, Method)
    return found
