"""Vector-quantised autoencoder: z is a row of codes, all taken from one learned codebook.

Van den Oord, Vinyals, Kavukcuoglu: Neural Discrete Representation Learning (2017), equation (3),
with the codebook as moving averages (appendix A.1). The latent vector is cut into slots of
`code_dim` numbers; a prior over codes finds the codebook again in the embeddings.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from pmjax.datasets.batches import to_float
from pmjax.distributed import collectives
from pmjax.errors import UserError
from pmjax.methods.base import MethodSpec, NetBuilder, Objective
from pmjax.methods.losses import squared_error
from pmjax.nets import base as nets

Array = jax.Array


class Quantizer(nn.Module):
    """E and its codebook, which no gradient moves: it is the collection 'codebook'.

    A code that few embeddings use is given up for one of the batch's (Dhariwal et al. 2020): codes
    far from all embeddings would never be used again. So the first batch starts the codebook, too.
    """

    trunk: nn.Module
    codes: int
    code_dim: int
    decay: float
    revive_below: float
    axis: str | None

    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps examples [N, …] to quantised z [N, d]."""
        return self.quantize(x, train=train)[1]

    @nn.compact
    def quantize(
        self, x: Array, key: Array | None = None, *, train: bool
    ) -> tuple[Array, Array, Array | None]:
        """Returns z before and after quantising, [N, d] each, and the codes' perplexity.

        With a key it moves the codebook, as one device of those of `axis`, if that is a name.
        """
        start = nn.initializers.normal(1.0)
        shape = self.codes, self.code_dim
        book = self.variable("codebook", "vectors", lambda: start(self.make_rng("params"), shape))
        counts = self.variable("codebook", "counts", jnp.zeros, (self.codes,))
        z = self.trunk(x, train=train)
        slots = lax.stop_gradient(z.reshape(-1, self.code_dim))
        nearest = jnp.argmin(jnp.square(slots[:, None] - book.value).sum(-1), -1)
        z_q = book.value[nearest].reshape(z.shape)
        if key is None:
            return z, z_q, None
        used = jax.nn.one_hot(nearest, self.codes)
        share = collectives.mean(used.mean(0), self.axis)
        perplexity = jnp.exp(-jnp.sum(share * jnp.log(share + 1e-12)))
        mean_slot = collectives.mean(used.T @ slots / len(slots), self.axis)
        kept = self.decay * counts.value
        count = kept + (1 - self.decay) * share
        total = kept[:, None] * book.value + (1 - self.decay) * mean_slot
        everyone = collectives.all_gather(slots, self.axis)
        random = everyone[jax.random.randint(key, (self.codes,), 0, len(everyone))]
        average = count.mean()
        dead = count < self.revive_below * average
        vectors = total / jnp.maximum(count, 1e-12)[:, None]
        book.value = jnp.where(dead[:, None], random, vectors)
        counts.value = jnp.where(dead, average, count)
        return z, z_q, perplexity


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """Hyper-parameters; norms are means over an example's values, or z's."""

    codes: int = 128  # in the codebook
    code_dim: int = 0  # numbers in a slot (0: 4, or what of it divides the latent dimension)
    commitment: float = 0.25  # β, weight of ‖z - sg[e]‖²
    decay: float = 0.99  # of the codebook's moving averages
    revive_below: float = 0.03  # of a code's average use

    prior = "code_prior"

    def game(self, plan: NetBuilder) -> MethodSpec:
        """Returns the nets E and G, and the objective who moves both."""
        code_dim = self.code_dim or math.gcd(4, plan.latent_dim)
        if plan.latent_dim % code_dim:
            raise UserError(f"code_dim={code_dim} must divide latent_dim={plan.latent_dim}.")
        trunk = plan.trunk(plan.latent_dim)
        args = self.codes, code_dim, self.decay, self.revive_below, plan.axis
        E, G = (Quantizer(trunk, *args), plan.shape), plan.decoder()

        def forward(params, stats, batch, key):
            """z_e = E(x), e the nearest codes, x̂ = G(e) with e's gradient given to z_e."""
            x = to_float(batch)
            (z_e, e, perplexity), stats_E = nets.update(
                E[0], params["E"], stats["E"], x, key, method="quantize"
            )
            straight_through = z_e + lax.stop_gradient(e - z_e)
            x_hat, stats_G = nets.update(G[0], params["G"], stats["G"], straight_through)
            shared = {"x": x, "z": e, "z_e": z_e, "x_hat": x_hat, "perplexity": perplexity}
            return shared, stats | {"E": stats_E, "G": stats_G}

        def autoencoder_loss(params, stats, shared, key):
            """‖x - x̂‖² + β ‖z_e - sg[e]‖²; the codebook's own term is its moving average."""
            recon = squared_error(shared["x"], shared["x_hat"])
            commit = squared_error(shared["z_e"], lax.stop_gradient(shared["z"]))
            metrics = {"recon": recon, "commit": commit, "perplexity": shared["perplexity"]}
            return recon + self.commitment * commit, (metrics, stats)

        autoencoder = Objective("autoencoder", ("E", "G"), autoencoder_loss, plan.optimizer)
        return MethodSpec({"E": E, "G": G}, forward, ("E", "G"), (autoencoder,))
