"""Finding things by file name: a method, prior, data set, net or metric is one file."""

import importlib
import pkgutil
from types import ModuleType

from pmjax import errors


def names(package: str) -> list[str]:
    """Returns the names that `pmjax/PACKAGE/` offers: its modules without a leading underscore."""
    path = importlib.import_module(f"pmjax.{package}").__path__
    return sorted(m.name for m in pkgutil.iter_modules(path) if not m.name.startswith("_"))


def load(package: str, name: str, *, provides: str) -> ModuleType:
    """Imports `pmjax/PACKAGE/NAME.py`, which must define `provides`.

    Raises:
      UserError: if there is no such file; the message has the nearest name.
    """
    offered = names(package)
    if name not in offered:
        raise errors.unknown(package.rstrip("s"), name, offered)
    module = importlib.import_module(f"pmjax.{package}.{name}")
    if not hasattr(module, provides):
        valid = [n for n in offered if n != name]
        raise errors.unknown(package.rstrip("s"), name, valid)
    return module
