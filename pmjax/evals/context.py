"""Metrics: one file each, found by name, all given the same `Context`.

A metric called NAME is the file `pmjax/evals/metrics/NAME.py` (files that start with an underscore are
parts of metrics) with one function that returns finite numbers under keys such as 'recon/mse':

    def evaluate(ctx: Context, **args) -> dict[str, float]

A metric that the data does not fit raises a `UserError`; nothing is left out in silence. One that
takes features names their extractor, a file of `_features`, as EXTRACTOR, unless it has an argument
`extractor`; one that needs the run's own prior says OWN_PRIOR = True.
"""

import dataclasses
import zlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pmjax import plugins
from pmjax.datasets.base import Dataset
from pmjax.datasets.batches import to_uint8
from pmjax.errors import UserError

if TYPE_CHECKING:
    from pmjax.model import Model
CHUNK = 1000  # examples a call of the model: bounds what is held as float
# What a cached result may depend on; each on those before it, too.
DEPENDS = ("data", "autoencoder", "prior")


@dataclasses.dataclass
class Context:
    """A model, its data, and everything that several metrics need, computed once.

    Two sets of images without a model are a context too: `Context.from_images`. A metric that asks it
    for a model, a training set or reconstructions is refused; `compared` gives what there is.

    Args:
        model: encodes, decodes, reconstructs and samples.
        train: the training set.
        test: the test set.
        priors: the run's own prior first, then those that it is compared with.
        seed: of every random choice that a metric makes.
        num_samples: how many examples `samples` and `subset` give.
        fresh: (num, seed) -> float32 [num, D], new real points, where a data set can make them.
        sets: {name in `priors`: samples like `test.data`} that are given and not drawn.
        extractors: {feature extractor: its arguments}, where they are not the defaults.
        statistics: an .npz file of a mean and a covariance of features, instead of `test`.
        has_own: whether the first prior is the run's own; while stage 1 trains, that may not be
            there yet.
        embedded: () -> the training set's embeddings by this model, where they are kept.

    Attributes:
        used: {feature extractor: what its numbers depend on}, of those that metrics have used.
    """

    model: "Model | None"
    train: Dataset | None
    test: Dataset | None
    priors: tuple[str, ...]
    seed: int = 0
    num_samples: int = 4000
    fresh: Callable[[int, int], np.ndarray] | None = None
    sets: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    extractors: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    statistics: Path | None = None
    has_own: bool = True
    embedded: Callable[[], np.ndarray] | None = None
    used: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict, init=False)
    _caches: dict[str, dict] = dataclasses.field(
        default_factory=lambda: {of: {} for of in DEPENDS}, init=False, repr=False
    )

    def __post_init__(self):
        for name, what in _PARTS.items():
            if getattr(self, name) is None:
                setattr(self, name, _Absent(what))

    @classmethod
    def from_images(
        cls, samples: np.ndarray, reference: Dataset | Path, *, more: Dataset | None = None, **args
    ) -> "Context":
        """Returns the context of two sets of images, whose one 'prior' is 'samples'.

        Args:
            samples: uint8 [N, H, W, C], all of which are compared.
            reference: real images, or the file of their statistics.
            more: other real images; as many as there are samples give the floor.
            **args: others of the class.
        """
        statistics = reference if isinstance(reference, Path) else None
        return cls(
            model=None,
            train=more,
            test=None if statistics else reference,
            priors=("samples",),
            num_samples=len(samples),
            sets={"samples": samples},
            statistics=statistics,
            **args,
        )

    def has(self, part: str) -> bool:
        """Tells whether there is a 'model', a 'train' or a 'test' set."""
        return not isinstance(getattr(self, part), _Absent)

    def compared(self, also: Sequence[str] = ("recon", "recon_train")) -> dict[str, str]:
        """Returns {what: source of `_features.features_of`} to compare with 'test'.

        <what> is each prior, 'floor' (as many training images), where there is a training set, and,
        where there is a model, what of its decoder is asked for by `also`.
        """
        sources = dict(zip(self.priors, self.priors, strict=True))
        if self.has("train"):
            sources["floor"] = "train"
        if self.has("model"):
            sources |= {source: source for source in also}
        return sources

    def of_model(self, model: "Model", *, same_autoencoder: bool = False) -> "Context":
        """Returns the context of another model, which keeps what does not depend on it."""
        ctx = dataclasses.replace(self, model=model, embedded=None)
        kept = ("data", "autoencoder") if same_autoencoder else ("data",)
        ctx._caches |= {of: self._caches[of] for of in kept}
        ctx.used = self.used
        return ctx

    def cached(self, key: Hashable, make: Callable[[], Any], *, of: str = "prior") -> Any:
        """Returns what `make` returned when it was first called for this key.

        `of`, one of `DEPENDS`, is what the result depends on.
        """
        cache = self._caches[of]
        if key not in cache:
            cache[key] = make()
        return cache[key]

    def derived_seed(self, *words: str | int) -> int:
        """Returns a seed in [0, 2³¹) that depends on the context's seed and on the words."""
        return derived_seed(self.seed, *words)

    def subset(self, split: str, num: int | None = None) -> np.ndarray:
        """Returns min(num, N) random, sorted indices of a split; num=None: `num_samples`."""
        size = len(self._data(split))
        rng = np.random.default_rng(self.derived_seed("subset", split))
        return np.sort(rng.permutation(size)[: self.num_samples if num is None else num])

    def samples(self, prior: str | None = None) -> np.ndarray:
        """Returns `num_samples` samples of a prior (None: the run's own), like `test.data`."""
        prior = self.own_prior if prior is None else prior
        if prior in self.sets:
            return self.sets[prior]
        return self.cached(("samples", prior), lambda: self.draw(prior, self.num_samples, 0))

    def draw(self, prior: str, num: int, index: int) -> np.ndarray:
        """Returns the index-th independent draw of `num` samples, like `test.data`."""
        return np.concatenate(list(self.iter_samples(prior, num, index)))

    def iter_samples(self, prior: str, num: int, index: int = 0) -> Iterator[np.ndarray]:
        """Yields what `draw` returns, in parts of `CHUNK` at most."""
        for start in range(0, num, CHUNK):
            seed = self.derived_seed("samples", index, start)
            part = self.model.sample(min(CHUNK, num - start), seed=seed, prior=prior)
            part = finite(f"samples of prior '{prior}'", part)
            yield to_uint8(part) if self.has_images else part

    def reconstructions(self, split: str, rows: np.ndarray) -> np.ndarray:
        """Returns float32 reconstructions, in [-1, 1] for images, of some rows of a split."""
        return self._apply(self.model.reconstruct, "reconstructions", self._data(split)[rows])

    def reconstructed(self, split: str, num: int | None = None) -> Iterator[np.ndarray]:
        """Yields `reconstructions` of a split, or of its `subset`, in parts of `CHUNK` at most."""
        rows = np.arange(len(self._data(split))) if num is None else self.subset(split, num)
        for start in range(0, len(rows), CHUNK):
            yield self.reconstructions(split, rows[start : start + CHUNK])

    def embeddings(self, split: str) -> np.ndarray:
        """Returns the float32 embeddings [N, d] of a split, in inference mode."""
        kept = self.embedded if split == "train" else None
        return self.cached(
            ("embeddings", split),
            kept or (lambda: self._apply(self.model.encode, "embeddings", self._data(split))),
            of="autoencoder",
        )

    def midpoints(self, num: int) -> Iterator[np.ndarray]:
        """Yields decoded midpoints of `num` random pairs of test embeddings, like `iter_samples`."""
        z = self.embeddings("test")
        if len(z) < 2:
            raise UserError("Midpoints need two test examples or more.")
        rng = np.random.default_rng(self.derived_seed("midpoints"))
        first = rng.integers(len(z), size=num)
        second = (first + rng.integers(1, len(z), size=num)) % len(z)
        for start in range(0, num, CHUNK):
            rows = slice(start, start + CHUNK)
            part = self.model.decode((z[first[rows]] + z[second[rows]]) / 2)
            part = finite("midpoints", part)
            yield to_uint8(part) if self.has_images else part

    @property
    def own_prior(self) -> str:
        """The prior that the run was made for."""
        if not self.priors or not self.has_own:
            raise _NotThere(
                "the run's own prior (not --config.eval.during, if stage 2 trains that)"
            )
        return self.priors[0]

    @property
    def has_images(self) -> bool:
        """Whether the data are images and not points."""
        return not self.has("test") or self.test.data.ndim == 4

    def require_images(self, metric: str) -> None:
        """Refuses data that are not images."""
        if not self.has_images:
            raise UserError(f"Metric '{metric}' needs images, and these data are points. {LEAVE}")

    def require_points(self, metric: str) -> None:
        """Refuses data that are not points."""
        if self.has_images:
            raise UserError(f"Metric '{metric}' needs points, and these data are images. {LEAVE}")

    def _data(self, split):
        return {"train": self.train, "test": self.test}[split].data

    @staticmethod
    def _apply(function, what, data):
        chunks = (data[i : i + CHUNK] for i in range(0, len(data), CHUNK))
        return np.concatenate([finite(what, function(chunk)) for chunk in chunks])


class _NotThere(UserError):
    """Says what a metric needs and the context lacks."""


class _Absent:
    """Stands for a part that a context lacks: whoever asks it for anything is refused."""

    def __init__(self, what: str):
        self._what = what

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        raise _NotThere(self._what)


_PARTS = {
    "model": "a trained model (--workdir)",
    "train": "a set of other real images (--floor)",
    "test": "the reference's images, not only their statistics",
}
LEAVE = "Leave it out of --evals or --config.eval.metrics."


def derived_seed(seed: int, *words: str | int) -> int:
    """Returns a seed in [0, 2³¹) that depends on another one and on the words."""
    return zlib.crc32(repr((seed, *words)).encode()) >> 1


def finite(what: str, values: np.ndarray) -> np.ndarray:
    """Returns values of a model as float32; `UserError` if they are not finite."""
    values = np.asarray(values, np.float32)
    if not np.isfinite(values).all():
        raise UserError(
            f"The model's {what} hold NaN or infinite values: it has diverged. "
            "Train it again, with a lower learning rate or with gradient clipping."
        )
    return values


def fresh_points(dataset: str) -> Callable[[int, int], np.ndarray] | None:
    """Returns (num, seed) -> points of a data set that has `points(num, seed)`, else None."""
    module = plugins.load("datasets", dataset)
    points = getattr(module, "points", None)
    return points and (lambda num, seed: points(num, seed)[0])
