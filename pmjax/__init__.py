"""pmjax: generative autoencoders whose prior is fitted to the embedding, in JAX.

model = pmjax.load("runs/digits")
images = pmjax.to_uint8(model.sample(64, seed=0))
"""

__version__ = "0.1.0"

_EXPORTS = {
    "load": "pmjax.model",
    "Model": "pmjax.model",
    "to_float": "pmjax.datasets.batches",
    "to_uint8": "pmjax.datasets.batches",
    "UserError": "pmjax.errors",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str):
    """Imports what is asked for only then: the commands set up JAX's devices before."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'pmjax' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(_EXPORTS[name]), name)
