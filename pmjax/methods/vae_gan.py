"""VAE/GAN: the critic's features, not pixels, say whether a reconstruction is like its original.

Larsen, Sønderby, Larochelle, Winther: Autoencoding beyond Pixels Using a Learned Similarity Metric
(2016), algorithm 1.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from pmjax import errors
from pmjax.distributed import collectives
from pmjax.methods.base import MethodSpec, NetBuilder, Objective, autoencode_with_noise
from pmjax.methods.losses import ADVERSARIAL, gaussian_kl, squared_error
from pmjax.nets import base as nets


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """Hyper-parameters; norms are means over an example's values or features.

    The paper's sums, divided by the number of an example's values: its KL has the weight 1 / that
    number for the Gaussian of variance 1/2. With features alone, perceptrons on digits had noise
    for reconstructions after 300 steps; pixels beside them are kept for that.
    """

    kl_weight: float = 1.0  # of the KL divergence, in nats a value
    gamma: float = 10.0  # weight of the similarity against the adversarial loss, for G
    pixel_weight: float = 1.0  # of ‖x - x̂‖² in the similarity; the paper's is 0
    adversarial: str = "logistic"  # the paper's; or 'hinge'

    prior = "standard_normal"

    def __post_init__(self):
        if self.adversarial not in ADVERSARIAL:
            raise errors.unknown("adversarial loss", self.adversarial, ADVERSARIAL)

    def game(self, plan: NetBuilder) -> MethodSpec:
        """Returns the nets E, G and d, and the objectives who move them."""
        E, G, d = plan.posterior(), plan.decoder(), plan.critic()
        encode = autoencode_with_noise(E[0], G[0], plan.axis)
        weight = self.kl_weight / float(np.prod(plan.shape))
        tell, deceive = ADVERSARIAL[self.adversarial]

        def forward(params, stats, batch, key):
            """d_l and d of x, of x̂ = G(z), z ~ q(z|x), and of x_p = G(z_p), z_p ~ N(0, I)."""
            noise_key, prior_key = jax.random.split(key)
            shared, moved = encode(params, stats, batch, noise_key)
            z_p = collectives.sample_batch(
                jax.random.normal, prior_key, shared["z"].shape, plan.axis
            )
            x_p = nets.apply(G[0], params["G"], stats["G"], z_p, train=True)
            everything = jnp.concatenate([shared["x"], shared["x_hat"], x_p])
            (features, said), stats_d = nets.update(
                d[0], params["d"], stats["d"], everything, method="features"
            )
            shared["f_x"], shared["f_hat"], _ = jnp.split(features, 3)
            shared["d_x"], shared["d_hat"], shared["d_p"] = jnp.split(said, 3)
            return shared, moved | {"d": stats_d}

        def similarity(shared):
            """-log p(d_l(x)|z), and the squared error of pixels."""
            like = squared_error(shared["f_x"], shared["f_hat"])
            recon = squared_error(shared["x"], shared["x_hat"])
            return like + self.pixel_weight * recon, {"recon": recon, "similarity": like}

        def critic_loss(params, stats, shared, key):
            """-log d(x) - log(1 - d(x̂)) - log(1 - d(x_p)); the fakes count half each."""
            fake = jnp.concatenate([shared["d_hat"], shared["d_p"]])
            metrics = {"d/real": shared["d_x"].mean(), "d/fake": fake.mean()}
            return tell(shared["d_x"], fake), (metrics, stats)

        def encoder_loss(params, stats, shared, key):
            """KL(q(z|x) ‖ N(0, I)) - log p(d_l(x)|z)."""
            loss, metrics = similarity(shared)
            kl = jnp.mean(gaussian_kl(shared["z"], shared["log_variance"]))
            return weight * kl + loss, (metrics | {"kl": kl}, stats)

        def decoder_loss(params, stats, shared, key):
            """-γ log p(d_l(x)|z) - log d(x̂) - log d(x_p)."""
            fool = deceive(jnp.concatenate([shared["d_hat"], shared["d_p"]]))
            return self.gamma * similarity(shared)[0] + fool, ({"fool": fool}, stats)

        objectives = (
            Objective("critic", ("d",), critic_loss, plan.optimizer),
            Objective("encoder", ("E",), encoder_loss, plan.optimizer),
            Objective("decoder", ("G",), decoder_loss, plan.optimizer),
        )
        everything = {"E": E, "G": G, "d": d}
        return MethodSpec(everything, forward, tuple(everything), objectives)
