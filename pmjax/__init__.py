"""pmjax: generative autoencoders whose prior is fitted to the embedding, in JAX.

model = pmjax.load("runs/digits")
images = pmjax.to_uint8(model.sample(64, seed=0))
"""

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = ["Model", "UserError", "load", "to_float", "to_uint8"]


def __getattr__(name: str) -> Any:
    """Imports the interface at its first use: commands configure JAX's devices before that."""
    if name not in __all__:
        raise AttributeError(f"module 'pmjax' has no attribute '{name}'")
    return getattr(importlib.import_module("pmjax.api"), name)
