"""What a feature extractor is, and its features of a context's images, computed once.

An extractor called NAME is the file `pmjax/evals/features/NAME.py` with

    DIM: int                                             # of a feature vector
    CLASSES: int                                         # that it scores; 0 for none
    def stream(images, **args) -> Iterator[float32 [n, DIM]]   # in the images' order
    def identity(**args) -> dict[str, str]               # what the numbers depend on
    def logits(features, **args) -> float32 [N, CLASSES]  # if it scores classes

`images` are uint8 [N, H, W, 1 or 3], or an iterable of such parts. `stream` checks its arguments
when it is called and computes when it is iterated. The types of `identity`'s keyword arguments are
those that a config may give.
"""

from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
from scipy.linalg.blas import dsyrk

from pmjax import plugins
from pmjax.datasets.batches import to_uint8
from pmjax.errors import UserError
from pmjax.evals.context import Context
from pmjax.evals.features import statistics

OF_DATA = ("test", "train")  # sources that no model makes


class Features:
    """The features of one extractor, on the images of one context, for one metric."""

    def __init__(self, ctx: Context, extractor: str, *, metric: str = "", **args: Any):
        """Computes nothing yet.

        Keys of values and messages begin with `metric`, its name. Those of the extractor's `args`
        that are not None replace the context's.
        """
        given = {name: value for name, value in args.items() if value is not None}
        self.ctx, self.extractor, self.metric = ctx, extractor, metric
        self.args = {**ctx.extractors.get(extractor, {}), **given}

    @property
    def module(self) -> ModuleType:
        """The extractor."""
        return plugins.load("extractors", self.extractor)

    def identity(self) -> dict[str, str]:
        """Returns what the features depend on, and notes it in the context."""
        self.ctx.used[self.extractor] = self.module.identity(**self.args)
        return self.ctx.used[self.extractor]

    def stream(self, images: np.ndarray | Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yields features float32 [n, D] of images, or of parts of them."""
        self.identity()
        return self.module.stream(images, **self.args)

    def extract_features(self, images: np.ndarray) -> np.ndarray:
        """Returns features float32 [N, D] of images."""
        self.identity()
        return extract_features(self.module, images, **self.args)

    def of(self, source: str) -> np.ndarray:
        """Returns the features float32 [N, D] of a source of `images_of`, computed once."""
        depends_on = "autoencoder"
        if source in OF_DATA or source in self.ctx.priors:
            depends_on = "data" if source in OF_DATA else "prior"
        return self.cached(
            source,
            lambda: self.extract_features(images_of(self.ctx, source)),
            depends_on=depends_on,
        )

    def logits(self, source: str) -> np.ndarray:
        """Returns the class scores float32 [N, CLASSES] of a source of `images_of`."""
        if not self.module.CLASSES:
            raise UserError(
                f"Metric '{self.metric}' needs scores of classes, and the extractor "
                f"'{self.extractor}' has none."
            )
        return self.module.logits(self.of(source), **self.args)

    def moments(self, split: str) -> statistics.Moments:
        """Returns the statistics of a whole split, from the context or the cache of files."""
        data, about = getattr(self.ctx, split), {"extractor": self.extractor, **self.identity()}

        def compute() -> statistics.Moments:
            return statistics.cached(
                about, data.fingerprint, lambda: moments(self.stream(data.data)), self.module.DIM
            )

        return self.cached(f"moments of {split}", compute, depends_on="data")

    def cached(self, key: str, make: Any, *, depends_on: str) -> Any:
        """Returns the context's cached result, for these arguments of the extractor."""
        return self.ctx.cached(
            (self.extractor, key, *sorted(self.args.items())), make, depends_on=depends_on
        )


def extract_features(extractor: ModuleType, images: np.ndarray, **args: Any) -> np.ndarray:
    """Returns an extractor's features float32 [N, D] of images."""
    parts = list(extractor.stream(images, **args))
    return np.concatenate(parts) if parts else np.zeros((0, extractor.DIM), np.float32)


def images_of(ctx: Context, source: str) -> np.ndarray:
    """Returns uint8 [N, H, W, C] images of a context.

    A source is 'test' (all of it), 'train' (`num_samples` of it, or all), 'recon' and 'recon_train'
    (the reconstructions of those), 'midpoints' (`Context.midpoints`, `num_samples`), or the name of
    a prior (its samples).
    """
    make = {
        "test": lambda: ctx.test.data,
        "train": lambda: ctx.train.data[ctx.subset("train")],
        "recon": lambda: _joined(map(to_uint8, ctx.reconstructed("test"))),
        "recon_train": lambda: _joined(map(to_uint8, ctx.reconstructed("train", ctx.num_samples))),
        "midpoints": lambda: _joined(ctx.midpoints(ctx.num_samples)),
    }.get(source)
    if make is None and source not in ctx.priors:
        raise UserError(f"There are no images '{source}'. Priors: {', '.join(ctx.priors)}.")
    return make() if make else ctx.samples(source)


def moments(parts: Iterable[np.ndarray]) -> statistics.Moments:
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
            squares = dsyrk(1, x.T, beta=1, c=squares, overwrite_c=True)  # the upper triangle
        count += len(part)
    if shift is None or count < 2:
        raise UserError(f"A covariance needs two examples, not {count}.")
    mean = sums / count
    squares = np.triu(squares) + np.triu(squares, 1).T
    return shift + mean, (squares - count * np.outer(mean, mean)) / (count - 1), count


def _joined(parts: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate(list(parts))
