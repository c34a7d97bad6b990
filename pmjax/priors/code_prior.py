"""An autoregressive prior over discrete codes: one slot of the embedding after another.

The codes are recovered from the table of embeddings: each slot holds one vector of a codebook. The
density of the codes is NADE's, with one more hidden layer. Larochelle and Murray: The Neural
Autoregressive Distribution Estimator (2011).
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import lax

from pmjax.distributed import collectives
from pmjax.errors import UserError
from pmjax.methods.base import LossValue, MethodSpec, Objective, Shared
from pmjax.nets.base import Net, Nets
from pmjax.priors.base import Array, TrainedPrior, Tree

_MAX_CODES = 4096
_MAX_ROWS = 5000  # embeddings from which the size of the slots is found


def find_codes(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the codebook [K, c] of embeddings z [N, d], and the code of each slot [N, d/c].

    The size c of a slot is the one with the shortest description of codes and codebook. Smaller
    slots are more codes; the codebook of larger ones holds combinations of codes.

    Raises:
      UserError: if no size gives a codebook.
    """

    def distinct(z: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        slots = np.ascontiguousarray(z, np.float32).reshape(-1, size)
        rows = slots.view(np.dtype((np.void, slots.itemsize * size)))[:, 0]
        _, first, codes = np.unique(rows, return_index=True, return_inverse=True)
        return slots[first], codes.reshape(len(z), -1)

    def bits(size: int) -> float:
        book, codes = distinct(z[:_MAX_ROWS], size)
        return codes.size * np.log2(len(book)) + 32 * book.size

    sizes = (size for size in range(1, z.shape[1] + 1) if z.shape[1] % size == 0)
    book, codes = distinct(z, min(sizes, key=bits))
    if len(book) > min(_MAX_CODES, codes.size / 2):
        raise UserError(
            f"Prior 'code_prior' needs embeddings made of codes, but {codes.size} parts of "
            f"{len(z)} embeddings are {len(book)} different vectors. Train on more "
            "examples, or choose another prior."
        )
    return book, codes.astype(np.int32)


def _logits(net: Tree, previous: Array, mask: Array | float = 1.0) -> Array:
    """Maps sums over the codes before each slot, [N, S, width], to logits [N, S, K]."""
    hidden = jax.nn.relu(previous + net["enter"]) * mask
    hidden = hidden + jax.nn.relu(hidden @ net["hidden"])
    return jnp.einsum("nsh,shk->nsk", hidden, net["leave"]) + net["bias"]


class Density(nn.Module):
    """p(codes) of embeddings whose codebook it holds, as the collection 'codebook'."""

    book: np.ndarray
    width: int

    @nn.compact
    def __call__(self, z: Array, mask: Array | float = 1.0, *, train: bool) -> Array:
        """Maps embeddings z [N, d] to the mean of -log p(code) over slots [N].

        The mask [N, S, width] is that of dropout on the hidden layer.
        """
        book = self.variable("codebook", "vectors", jnp.asarray, self.book).value
        slots = z.reshape(len(z), -1, book.shape[1])
        codes = (slots[:, :, None] == book).all(-1).argmax(-1)
        num, width, normal = codes.shape[1], self.width, nn.initializers.normal
        net = {
            "embed": self.param("embed", normal(num**-0.5), (num, len(book), width)),
            "enter": self.param("enter", nn.initializers.zeros, (num, width)),
            "hidden": self.param("hidden", normal((2 / width) ** 0.5), (width, width)),
            "leave": self.param("leave", normal(0.1 / width**0.5), (num, width, len(book))),
            "bias": self.param("bias", nn.initializers.zeros, (num, len(book))),
        }
        embedded = net["embed"][jnp.arange(num), codes]
        logits = _logits(net, jnp.cumsum(embedded, 1) - embedded, mask)
        return optax.softmax_cross_entropy_with_integer_labels(logits, codes).mean(-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prior(TrainedPrior):
    """NADE on the codes, by maximum likelihood."""

    width: int = 128  # of the hidden layers
    dropout: float = 0.5  # of the first hidden layer
    weight_decay: float = 1.0  # λ; with 0 it overfits to few embeddings
    b1: float = 0.9  # of Adam, instead of config.stage2.optimizer.b1
    needs_embeddings = True  # which hold the codebook

    def spec(self, latent_dim: int) -> MethodSpec:
        """Returns the net 'density', and the objective that updates it.

        The codebook is one vector 0 until `init_from_embeddings` replaces it.
        """
        return self._spec(np.zeros((1, latent_dim), np.float32), latent_dim, num=1)

    def init_from_embeddings(self, spec: MethodSpec, z: np.ndarray, *, seed: int) -> MethodSpec:
        """Returns the spec with the codebook of embeddings z [N, d]."""
        return self._spec(find_codes(z)[0], z.shape[1], num=len(z))

    def _spec(self, book: np.ndarray, latent_dim: int, *, num: int) -> MethodSpec:
        nets = {"density": Net(Density(book, self.width), (latent_dim,))}
        objective = Objective("prior", ("density",), partial(self.loss, num=num), b1=self.b1)
        return MethodSpec(nets, self.forward, (), (objective,), averaged=("density",))

    def loss(self, nets: Nets, s: Shared, key: Array, *, num: int) -> LossValue:
        """-Σ_s log p(c_s | c_1, …, c_{s-1}) / S + λ ‖W‖² / N, for S codes c of N embeddings."""
        params = nets.density.params
        shape, keep = (len(s.z), *params["enter"].shape), 1 - self.dropout
        on = collectives.sample_batch(
            lambda k, size: jax.random.bernoulli(k, keep, size), key, shape
        )
        nats = nets.density(s.z, on / keep).mean()
        squares = sum(jnp.square(params[name]).sum() for name in ("embed", "hidden", "leave"))
        return nats + self.weight_decay / num * squares, {"nats": nats}

    def export(self, params: Tree, stats: Tree) -> Tree:
        """Returns the density's parameters, and the codebook."""
        return params["density"] | {"book": stats["density"]["codebook"]["vectors"]}

    def sample(self, params: Tree, key: Array, num: int) -> Array:
        """Draws z [num, d]: the code of each slot given the codes before it."""
        net = jax.tree.map(jnp.asarray, params)

        def draw(previous: Array, slot: tuple[Array, Array]) -> tuple[Array, Array]:
            index, slot_key = slot
            one = {name: net[name][index][None] for name in ("enter", "leave", "bias")}
            logits = _logits(net | one, previous[:, None])[:, 0]
            code = jax.random.categorical(slot_key, logits)
            return previous + net["embed"][index, code], code

        slots, start = len(net["bias"]), jnp.zeros((num, net["hidden"].shape[0]))
        _, codes = lax.scan(draw, start, (jnp.arange(slots), jax.random.split(key, slots)))
        return net["book"][codes.T].reshape(num, -1)
