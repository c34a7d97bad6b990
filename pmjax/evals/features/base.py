"""Feature extractors, one file each, found by name, with results that metrics share.

An extractor called NAME is the file `pmjax/evals/features/NAME.py` with

    DIM: int                                             # of a feature vector
    def stream(images, **args) -> Iterator[float32 [n, DIM]]   # in the images' order
    def features(images, **args) -> float32 [N, DIM]
    def logits(features, *, bias=True, …) -> float32 [N, classes]  # where it has classes
    def identity(**args) -> dict[str, str]               # all that the numbers depend on

`images` are uint8 [N, H, W, 1 or 3], or an iterable of such parts. Metrics get features by
`features_of` and class scores by `logits_of`; the context's `extractors` holds the arguments that a
run or a command gives an extractor.
"""

from collections.abc import Iterable
from types import ModuleType

import numpy as np
from scipy.linalg.blas import dsyrk

from pmjax import plugins
from pmjax.datasets.batches import to_uint8
from pmjax.errors import UserError
from pmjax.evals.context import Context

OF_DATA = ("test", "train")  # sources that no model makes


def features_of(ctx: Context, extractor: str, source: str, **args) -> np.ndarray:
    """Returns the features float32 [N, D] of a set of images, computed once for a context.

    Args:
        ctx: the model and the data; `ctx.compared()` says which sources it has.
        extractor: a file of this package.
        source: of `images_of`.
        **args: of the extractor, instead of the context's.
    """
    args = arguments(ctx, extractor, args)

    def make():
        module = use(ctx, extractor, args)
        return module.features(images_of(ctx, source), **args)

    of = "data" if source in OF_DATA else "prior" if source in ctx.priors else "autoencoder"
    return ctx.cached(_key(extractor, source, args), make, of=of)


def logits_of(
    ctx: Context, extractor: str, source: str, *, bias: bool = True, **args
) -> np.ndarray:
    """Returns the class scores float32 [N, classes] of a set of images, from its features."""
    features = features_of(ctx, extractor, source, **args)
    return load(extractor).logits(features, bias=bias, **arguments(ctx, extractor, args))


def images_of(ctx: Context, source: str) -> np.ndarray:
    """Returns uint8 [N, H, W, C] images of a context.

    `source` is 'test' (all of it), 'train' (`num_samples` of it, or all), 'recon' and 'recon_train'
    (the reconstructions of those), 'midpoints' (decoded from half-way between the embeddings of
    `num_samples` random pairs of the test set), or the name of a prior (its samples).
    """
    make = {
        "test": lambda: ctx.test.data,
        "train": lambda: ctx.train.data[ctx.subset("train")],
        "recon": lambda: _together(map(to_uint8, ctx.reconstructed("test"))),
        "recon_train": lambda: _together(
            map(to_uint8, ctx.reconstructed("train", ctx.num_samples))
        ),
        "midpoints": lambda: _together(ctx.midpoints(ctx.num_samples)),
    }.get(source)
    if make is None and source not in ctx.priors:
        raise UserError(f"There are no images '{source}' here: {', '.join(ctx.priors)}.")
    return make() if make else ctx.samples(source)


def moments(parts: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray, int]:
    """Returns mean [D] and unbiased covariance [D, D] of features, in float64, and their number.

    Sums are taken about the first part's mean, so that their squares do not cancel.
    """
    shift, count = None, 0
    for part in parts:
        if shift is None:
            shift = part.mean(0, dtype=np.float64)
            sums, squares = np.zeros_like(shift), np.zeros(2 * shift.shape, order="F")
        for start in range(0, len(part), 1024):
            x = part[start : start + 1024] - shift
            sums += x.sum(0)
            squares = dsyrk(1, x.T, beta=1, c=squares, overwrite_c=True)  # its upper triangle
        count += len(part)
    if count < 2:
        raise UserError(f"A covariance needs two examples, not {count}.")
    mean = sums / count
    squares = np.triu(squares) + np.triu(squares, 1).T
    return shift + mean, (squares - count * np.outer(mean, mean)) / (count - 1), count


def load(extractor: str) -> ModuleType:
    """Imports an extractor."""
    return plugins.load("extractors", extractor)


def use(ctx: Context, extractor: str, args: dict) -> ModuleType:
    """Imports an extractor, and notes in the context which weights and settings were used."""
    module = load(extractor)
    ctx.used[extractor] = module.identity(**args)
    return module


def arguments(ctx: Context, extractor: str, args: dict) -> dict:
    """Returns an extractor's arguments: a metric's that are not None, else the context's."""
    given = {name: value for name, value in args.items() if value is not None}
    return {**ctx.extractors.get(extractor, {}), **given}


def _together(parts: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate(list(parts))


def _key(extractor, source, args):
    return (extractor, source, *sorted(args.items()))
