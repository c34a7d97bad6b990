"""Vector quantization of embeddings, with a codebook of moving averages."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from pmjax.distributed import collectives

_LEAST = 1e-12  # use of a code that moves its vector


class Quantizer(nn.Module):
    """E and its codebook, the collection 'codebook', which no gradient moves.

    Van den Oord et al. (2017), appendix A.1. A code that few embeddings use is replaced by an
    embedding of the batch (Dhariwal et al. 2020): codes far from all embeddings would never be used
    again. The first batch initializes the codebook in the same way.
    """

    trunk: nn.Module
    codes: int
    code_dim: int
    decay: float
    revive_below: float

    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps examples [N, …] to quantized z [N, d]."""
        return self.quantize(x, train=train)[1]

    @nn.compact
    def quantize(
        self, x: Array, key: Array | None = None, *, train: bool
    ) -> tuple[Array, Array, Array | None]:
        """Returns z before and after quantization, [N, d] each, and the codes' perplexity.

        Without a key the codebook does not change, and the perplexity is None.
        """
        normal, shape = nn.initializers.normal(1.0), (self.codes, self.code_dim)
        book = self.variable("codebook", "vectors", lambda: normal(self.make_rng("params"), shape))
        counts = self.variable("codebook", "counts", jnp.zeros, (self.codes,))
        z = self.trunk(x, train=train)
        slots = lax.stop_gradient(z.reshape(-1, self.code_dim))
        nearest = jnp.argmin(jnp.square(slots[:, None] - book.value).sum(-1), -1)
        z_q = book.value[nearest].reshape(z.shape)
        if key is None:
            return z, z_q, None
        used = jax.nn.one_hot(nearest, self.codes)
        share = collectives.mean(used.mean(0))
        perplexity = jnp.exp(-jnp.sum(share * jnp.log(share + 1e-12)))
        mean_slot = collectives.mean(used.T @ slots / len(slots))
        decayed = self.decay * counts.value
        count = decayed + (1 - self.decay) * share
        total = decayed[:, None] * book.value + (1 - self.decay) * mean_slot
        all_slots = collectives.all_gather(slots)
        random = all_slots[jax.random.randint(key, (self.codes,), 0, len(all_slots))]
        average = count.mean()
        dead = count < self.revive_below * average
        vectors = total / jnp.maximum(count, _LEAST)[:, None]
        vectors = jnp.where(count[:, None] > _LEAST, vectors, book.value)  # the unused ones stay
        book.value = jnp.where(dead[:, None], random, vectors)
        counts.value = jnp.where(dead, average, count)
        return z, z_q, perplexity
