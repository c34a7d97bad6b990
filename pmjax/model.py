"""A trained model: encodes, decodes, reconstructs, samples and interpolates."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from pmjax import builders
from pmjax.datasets.batches import to_float
from pmjax.distributed import accelerators
from pmjax.errors import UserError
from pmjax.finite import require_finite
from pmjax.nets import base as nets
from pmjax.storage import checkpoint
from pmjax.storage.workdir import prior_path, read_embeddings

Arrays = dict[str, Any]

_BATCH = 256
_CORRECT = "Correct it or leave it out."


class Model:
    """A trained autoencoder with priors over its embedding.

    Examples are images [N, H, W, C], uint8 or float in [-1, 1], or points [N, D]. Results are
    float32 NumPy arrays, images in [-1, 1]; `pmjax.to_uint8` converts them to pixels.

    Attributes:
      shape: shape of one example.
      latent_dim: size of its embedding.
      prior: name of the run's own prior, the default of `sample`.
    """

    def __init__(
        self,
        settings: ConfigDict,
        arrays: Arrays,
        *,
        workdir: Path | None = None,
        fit_prior: Callable[[str], Arrays] | None = None,
    ):
        """Binds the nets of a config to arrays.

        Args:
          settings: the config.
          arrays: {'params': {'E', 'G', …}, 'stats': {'E', 'G'}, 'shape', …}.
          workdir: where fitted priors are read and written (None: nowhere).
          fit_prior: returns the arrays of a prior that the workdir does not have.
        """
        accelerators.start()
        self.shape = tuple(int(size) for size in arrays["shape"])
        self.latent_dim, self.prior = settings.latent_dim, settings.prior
        self._workdir, self._fit_prior, self._arrays = workdir, fit_prior, _of_nets(arrays)
        self._settings = settings
        self._priors: dict[str, tuple[Any, Any]] = {}
        self._samplers: dict[str, Callable[..., jax.Array]] = {}  # compiled once for each size
        spec = builders.stage1_spec(settings, self.shape)

        def call(name: str, arrays: Arrays, x: jax.Array) -> jax.Array:
            params, stats = arrays["params"][name], arrays["stats"].get(name, {})
            return nets.apply(spec.nets[name].module, params, stats, x)

        self._encode = jax.jit(lambda arrays, x: call("E", arrays, to_float(x)))
        self._decode = jax.jit(partial(call, "G"))

    def updated(self, fit_prior: Callable[[str], Arrays], arrays: Arrays) -> "Model":
        """Returns a model of the same compiled nets with other arrays and priors, no workdir."""
        other = copy.copy(self)
        other._workdir, other._fit_prior, other._priors = None, fit_prior, {}
        other._arrays = _of_nets(arrays)
        return other

    def encode(self, x: np.ndarray) -> np.ndarray:
        """Returns the embeddings [N, latent_dim] of examples [N, …], in inference mode."""
        x = np.asarray(x)
        if x.ndim != len(self.shape) + 1 or x.shape[1:] != self.shape:
            raise UserError(
                f"encode takes examples of shape [N, {', '.join(map(str, self.shape))}]"
                f", not {list(x.shape)}."
            )
        if x.dtype != np.uint8:
            images = len(self.shape) == 3
            wanted = "encode takes float images within [-1, 1], or uint8"
            if x.dtype.kind not in ("f" if images else "fiu"):
                raise UserError(f"{wanted if images else 'encode takes numbers'}, not {x.dtype}.")
            x = x.astype(np.float32)
            require_finite(x, "encode: example", _CORRECT)
            if images and (far := np.abs(x).max((1, 2, 3), initial=0) > 1.5).any():
                raise UserError(f"{wanted}; example {far.argmax()} is outside.")
        return _batched(partial(self._encode, self._arrays), x)

    def decode(self, z: np.ndarray) -> np.ndarray:
        """Returns the examples [N, …] of embeddings [N, latent_dim]."""
        z = np.asarray(z)
        if z.ndim != 2 or z.shape[1] != self.latent_dim or z.dtype.kind not in "fiu":
            raise UserError(
                f"decode takes numbers [N, {self.latent_dim}], not {z.dtype} {list(z.shape)}."
            )
        z = z.astype(np.float32)
        require_finite(z, "decode: embedding", _CORRECT)
        return self._decoded(z)

    def _decoded(self, z: np.ndarray) -> np.ndarray:
        return _batched(partial(self._decode, self._arrays), z)

    def reconstruct(self, x: np.ndarray) -> np.ndarray:
        """Returns G(E(x)) for examples [N, …]."""
        return self._decoded(self.encode(x))

    def interpolate(self, a: np.ndarray, b: np.ndarray, *, steps: int = 9) -> np.ndarray:
        """Returns paths [N, steps, …] from each example of `a` to that of `b`, ends included."""
        if len(a) != len(b):
            raise UserError(f"`a` and `b` must have the same length, not {len(a)} and {len(b)}.")
        if steps < 2:
            raise UserError(f"`steps` must be at least 2, not {steps}.")
        share = np.linspace(0, 1, steps, dtype=np.float32)[None, :, None]
        z = (1 - share) * self.encode(a)[:, None] + share * self.encode(b)[:, None]
        return self._decoded(z.reshape(-1, self.latent_dim)).reshape(len(a), steps, *self.shape)

    def sample(self, num: int, *, seed: int = 0, prior: str | None = None) -> np.ndarray:
        """Returns `num` new examples G(z), the same for the same seed.

        Args:
          num: number of samples.
          seed: of the draw.
          prior: name of a prior (None: the run's own). A prior that the workdir does not have yet
            is fitted to the run's embeddings, or trained on them.
        """
        return self._decoded(self.sample_latent(num, seed=seed, prior=prior))

    def sample_latent(self, num: int, *, seed: int = 0, prior: str | None = None) -> np.ndarray:
        """Returns draws [num, latent_dim] of a prior over the embedding."""
        if num < 1:
            raise UserError(f"`num` must be at least 1, not {num}.")
        name = prior or self.prior
        fitted, arrays = self.fitted_prior(name)
        if name not in self._samplers:
            self._samplers[name] = jax.jit(fitted.sample, static_argnums=2)
        return np.asarray(self._samplers[name](arrays, jax.random.key(seed), num))

    def sample_base(
        self, num: int, *, seed: int = 0, prior: str | None = None
    ) -> np.ndarray | None:
        """Returns the base draws z' [num, p] that `sample` maps with this seed, or None."""
        fitted, arrays = self.fitted_prior(prior or self.prior)
        base = fitted.sample_base(arrays, jax.random.key(seed), num)
        return None if base is None else np.asarray(base)

    def fitted_prior(self, name: str) -> tuple[Any, Any]:
        """Returns a prior and its arrays: the run's own, or one fitted to the run's embeddings."""
        if name not in self._priors:
            prior = builders.prior(self._settings, name)
            path = self._workdir and prior_path(self._workdir, name)
            if path and path.is_file():
                arrays = checkpoint.read_arrays(path)
            else:
                if self._fit_prior is None:
                    raise UserError(f"{self._workdir or 'This model'} has no prior '{name}'.")
                arrays = self._fit_prior(name)
                if path:
                    checkpoint.write_arrays(path, arrays)
            self._priors[name] = prior, jax.tree.map(jnp.asarray, arrays)
        return self._priors[name]

    def embeddings(self) -> np.ndarray:
        """Returns the embeddings [N, latent_dim] of the training set, from the workdir."""
        if self._workdir is None:
            raise UserError("This model has no workdir with embeddings.")
        return read_embeddings(self._workdir)


def _of_nets(arrays: Arrays) -> Arrays:
    """Returns the parameters and statistics alone, so that compiled nets take any arrays."""
    return {"params": arrays["params"], "stats": arrays["stats"]}


def _batched(fn: Callable[[np.ndarray], jax.Array], x: np.ndarray) -> np.ndarray:
    """Applies a function to batches of one size, so that it compiles once; pads the last one."""
    size = min(_BATCH, 1 << max(0, len(x) - 1).bit_length())
    parts = []
    for start in range(0, len(x), size):
        part = x[start : start + size]
        padded = np.pad(part, [(0, size - len(part))] + [(0, 0)] * (x.ndim - 1))
        parts.append(np.asarray(fn(padded))[: len(part)])
    if not parts:
        raise UserError("There are no examples: the first size is 0.")
    return np.concatenate(parts)
