"""Feature extractors: one file each, with `features(images, **args)`; metrics share the results."""

import importlib

import numpy as np

from pmjax.datasets import to_uint8
from pmjax.evals import Context


def features_of(ctx: Context, extractor: str, source: str, **args) -> np.ndarray:
    """Returns the features float32 [N, D] of a set of images, computed once for a context.

    Args:
        ctx: the model and the data.
        extractor: a file of this package.
        source: 'test' (all of it), 'train' (`num_samples` of it, or all), 'recon' and
            'recon_train' (the reconstructions of those), or the name of a prior (its samples).
        **args: of the extractor.
    """

    def make():
        images = {
            "test": lambda: ctx.test.data,
            "train": lambda: ctx.train.data[ctx.subset("train")],
            "recon": lambda: to_uint8(ctx.reconstructions("test")),
            "recon_train": lambda: to_uint8(ctx.reconstructions("train", ctx.num_samples)),
        }.get(source, lambda: ctx.samples(source))
        module = importlib.import_module(f"{__name__}.{extractor}")
        return module.features(images(), **args)

    return ctx.cached((extractor, source, *sorted(args.items())), make)
