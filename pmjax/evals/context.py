"""The model, the data and shared results that every metric is given."""

import copy
import logging
import zlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pmjax import plugins
from pmjax.datasets.base import Dataset
from pmjax.datasets.batches import to_uint8
from pmjax.errors import UserError
from pmjax.model import Model

log = logging.getLogger(__name__)
T = TypeVar("T")
CHUNK = 1000  # examples per call of the model, which bounds the memory of float values
# What a cached result may depend on; each also on those before it.
DEPENDS = ("data", "autoencoder", "prior")
OMIT_HINT = "Leave it out of --evals or --config.eval.metrics."


class Missing(UserError):
    """Says what a metric needs and its context lacks."""


class Unfit(UserError):
    """Says why a metric cannot be computed from a context's data, whatever the model is."""


class Context:
    """A model, its data, and what several metrics need, computed once.

    Two sets of images without a model are a context too: `Context.from_images`. It rejects metrics
    that use a missing part, such as the model; `compared` returns the sets that it has.

    Attributes:
        used: {feature extractor: its identity}, of those that metrics have used.
    """

    def __init__(
        self,
        model: Model | None,
        train: Dataset | None,
        test: Dataset | None,
        priors: tuple[str, ...],
        *,
        seed: int = 0,
        num_samples: int = 4000,
        fresh: Callable[[int, int], np.ndarray] | None = None,
        sets: Mapping[str, np.ndarray] | None = None,
        extractors: Mapping[str, Mapping[str, Any]] | None = None,
        statistics: Path | None = None,
        has_own: bool = True,
        load_embeddings: Callable[[], np.ndarray] | None = None,
    ):
        """Computes nothing yet.

        Args:
            model: encodes, decodes, reconstructs and samples.
            train: the training set.
            test: the test set.
            priors: the run's own prior first, then those to compare it with.
            seed: of every random choice that a metric makes.
            num_samples: how many examples `samples` and `subset` return.
            fresh: (num, seed) -> float32 [num, D], new real points, if a data set can draw them.
            sets: {name in `priors`: samples like `test.data`}, given instead of drawn.
            extractors: {feature extractor: its arguments}, if they are not the defaults.
            statistics: an .npz file of a mean and a covariance of features, beside `test` or
                instead of it.
            has_own: whether the first prior is the run's own, which stage 2 may not have trained
                yet.
            load_embeddings: () -> the training set's embeddings by this model, if they are stored.
        """
        self._model, self._train, self._test = model, train, test
        self.priors, self.seed, self.num_samples = priors, seed, num_samples
        self.fresh, self.sets, self.extractors = fresh, sets or {}, extractors or {}
        self.statistics, self.has_own, self._load_embeddings = statistics, has_own, load_embeddings
        self.used: dict[str, dict[str, str]] = {}
        self._caches: dict[str, dict] = {of: {} for of in DEPENDS}

    @classmethod
    def from_images(
        cls,
        samples: np.ndarray,
        reference: Dataset | Path,
        *,
        more: Dataset | None = None,
        statistics: Path | None = None,
        **args,
    ) -> "Context":
        """Returns the context of two sets of images, whose only 'prior' is 'samples'.

        The reference is real images, perhaps with a file of their `statistics`, or only such a
        file. As many of `more`, other real images, as there are samples are the floor.
        """
        return cls(
            model=None,
            train=more,
            test=None if isinstance(reference, Path) else reference,
            priors=("samples",),
            num_samples=len(samples),
            sets={"samples": samples},
            statistics=reference if isinstance(reference, Path) else statistics,
            **args,
        )

    def has(self, part: str) -> bool:
        """Returns whether there is a 'model', a 'train' or a 'test' set."""
        return getattr(self, f"_{part}") is not None

    @property
    def sizes(self) -> dict[str, int]:
        """{part of `base.PARTS`: its number of examples}, of the parts that there are."""
        splits = {part: len(self._data(part)) for part in ("test", "train") if self.has(part)}
        return splits | {"samples": self.num_samples}

    def called(self, part: str) -> str:
        """Returns the name of the examples of a part of `base.PARTS` in messages."""
        if self.sets:
            flags = {"test": "reference", "train": "floor", "samples": "samples"}
            return f"images in --{flags[part]}"
        splits = {"test": "test examples", "train": "training examples"}
        return splits.get(part, "samples (--config.eval.num_samples)")

    @property
    def model(self) -> Model:
        """The model; `Missing` if there is none."""
        return _present(self._model, "a trained model (--workdir)")

    @property
    def train(self) -> Dataset:
        """The training set; `Missing` if there is none."""
        return _present(self._train, "a set of other real images (--floor)")

    @property
    def test(self) -> Dataset:
        """The test set; `Missing` if there is none."""
        return _present(self._test, "the reference's images, not only their statistics")

    def compared(self, also: Sequence[str] = ("recon", "recon_train")) -> dict[str, str]:
        """Returns {set: source of `features.base.images_of`} to compare with 'test'.

        The sets are each prior; 'floor' (as many training images), if there is a training set; and,
        if there is a model, those of its decoder in `also`.
        """
        sources = dict(zip(self.priors, self.priors, strict=True))
        if self.has("train"):
            sources["floor"] = "train"
        if self.has("model"):
            sources |= {source: source for source in also}
        return sources

    def with_model(self, model: "Model", *, same_autoencoder: bool = False) -> "Context":
        """Returns the context of another model, with the results that do not depend on it."""
        ctx = copy.copy(self)
        ctx._model, ctx._load_embeddings = model, None
        shared = ("data", "autoencoder") if same_autoencoder else ("data",)
        ctx._caches = {of: self._caches[of] if of in shared else {} for of in DEPENDS}
        return ctx

    def cached(self, key: Hashable, make: Callable[[], Any], *, depends_on: str = "prior") -> Any:
        """Returns the result of `make`, called once per key; `depends_on`: of `DEPENDS`."""
        cache = self._caches[depends_on]
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

    def latents(self, prior: str, num: int) -> np.ndarray:
        """Returns `num` latents of a prior, float32 [num, d]."""

        def make() -> np.ndarray:
            seed = self.derived_seed("latents", num)
            return np.asarray(self.model.sample_latent(num, seed=seed, prior=prior), np.float32)

        return finite(f"latents of prior '{prior}'", self.cached(("latents", prior, num), make))

    def iter_samples(self, prior: str, num: int, index: int = 0) -> Iterator[np.ndarray]:
        """Yields `draw` in parts of at most `CHUNK`."""
        for start in range(0, num, CHUNK):
            seed = self.derived_seed("samples", index, start)
            part = self.model.sample(min(CHUNK, num - start), seed=seed, prior=prior)
            yield self._like_data(f"samples of prior '{prior}'", part)

    def reconstructions(self, split: str, rows: np.ndarray) -> np.ndarray:
        """Returns float32 reconstructions, in [-1, 1] for images, of some rows of a split."""
        return _apply(self.model.reconstruct, "reconstructions", self._data(split)[rows])

    def reconstructed(self, split: str, num: int | None = None) -> Iterator[np.ndarray]:
        """Yields `reconstructions` of a split, or of its `subset`, in parts of at most `CHUNK`."""
        rows = np.arange(len(self._data(split))) if num is None else self.subset(split, num)
        for start in range(0, len(rows), CHUNK):
            yield self.reconstructions(split, rows[start : start + CHUNK])

    def embeddings(self, split: str) -> np.ndarray:
        """Returns the float32 embeddings [N, d] of a split, in inference mode."""

        def make() -> np.ndarray:
            data = self._data(split)
            if split == "train" and self._load_embeddings:
                stored = self._load_embeddings()
                if len(stored) == len(data):
                    return stored
                log.warning(
                    f"The training set has {len(data)} examples and had {len(stored)} in training. "
                    "It is encoded again."
                )
            return _apply(self.model.encode, "embeddings", data)

        return self.cached(("embeddings", split), make, depends_on="autoencoder")

    def midpoints(self, num: int) -> Iterator[np.ndarray]:
        """Yields `num` decoded midpoints of pairs of test embeddings, like `iter_samples`."""
        z = self.embeddings("test")
        if len(z) < 2:
            raise UserError("Midpoints need two test examples or more.")
        rng = np.random.default_rng(self.derived_seed("midpoints"))
        first = rng.integers(len(z), size=num)
        second = (first + rng.integers(1, len(z), size=num)) % len(z)
        for start in range(0, num, CHUNK):
            rows = slice(start, start + CHUNK)
            middle = (z[first[rows]] + z[second[rows]]) / 2
            yield self._like_data("midpoints", self.model.decode(middle))

    @property
    def own_prior(self) -> str:
        """The prior that the run is configured with; `Missing` if it is not there."""
        if not self.priors or not self.has_own:
            raise Missing("the run's own prior (not --config.eval.during, if stage 2 trains that)")
        return self.priors[0]

    @property
    def has_images(self) -> bool:
        """Whether the data are images and not points."""
        return not self.has("test") or self.test.data.ndim == 4

    def require_images(self, metric: str) -> None:
        """Raises `Unfit` for data that are not images."""
        if not self.has_images:
            raise Unfit(f"Metric '{metric}' needs images, and these data are points. {OMIT_HINT}")

    def require_points(self, metric: str) -> None:
        """Raises `Unfit` for data that are not points."""
        if self.has_images:
            raise Unfit(f"Metric '{metric}' needs points, and these data are images. {OMIT_HINT}")

    def _like_data(self, what: str, values: np.ndarray) -> np.ndarray:
        return to_uint8(finite(what, values)) if self.has_images else finite(what, values)

    def _data(self, split: str) -> np.ndarray:
        return (self.train if split == "train" else self.test).data


def _apply(function: Callable[[np.ndarray], np.ndarray], what: str, data: np.ndarray) -> np.ndarray:
    chunks = (data[i : i + CHUNK] for i in range(0, len(data), CHUNK))
    return np.concatenate([finite(what, function(chunk)) for chunk in chunks])


def _present(part: T | None, name: str) -> T:
    if part is None:
        raise Missing(name)
    return part


def derived_seed(seed: int, *words: str | int) -> int:
    """Returns a seed in [0, 2³¹) that depends on another one and on the words."""
    return zlib.crc32(repr((seed, *words)).encode()) >> 1


def finite(what: str, values: np.ndarray) -> np.ndarray:
    """Returns a model's values as float32; `UserError` if they are not finite."""
    values = np.asarray(values, np.float32)
    if not np.isfinite(values).all():
        raise UserError(
            f"The model's {what} hold NaN or infinite values: it has diverged. "
            "Train it again, with a lower learning rate or with gradient clipping."
        )
    return values


def fresh_points(dataset: str) -> Callable[[int, int], np.ndarray] | None:
    """Returns (num, seed) -> points of a data set that has `points(num, seed)`, else None."""
    points = getattr(plugins.load("datasets", dataset), "points", None)
    return points and (lambda num, seed: points(num, seed)[0])
