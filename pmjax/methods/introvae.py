"""Introspective variational autoencoder: the encoder is the critic of what the decoder makes.

Huang, Li, He, Sun, Tan: IntroVAE (2018), algorithm 1: their L_REG is the KL divergence to N(0, I)
here, and their L_AE half the sum of squared errors.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from pmjax.distributed import collectives
from pmjax.methods.base import MethodSpec, NetBuilder, Objective, autoencode_with_noise
from pmjax.methods.losses import gaussian_kl, squared_error
from pmjax.nets import base as nets


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """Hyper-parameters.

    Both losses are the paper's times 2/(values of an example · its β): the reconstruction is a
    mean over an example's values, and `kl_weight` is 2/β. On images of 28×28 the paper's α of 0.25
    and more gives digits of noise; the margin has to be a little above KL(X).
    """

    kl_weight: float = 1.0  # of all KL divergences, in nats over an example's number of values
    alpha: float = 0.1  # share of the adversarial KL divergences
    margin: float = 30.0  # m, nats: to where E pushes the divergence of what G makes

    prior = "standard_normal"

    def game(self, plan: NetBuilder) -> MethodSpec:
        """Returns the nets E and G, and the objectives who move them."""
        E, G = plan.posterior(), plan.decoder()
        weight = self.kl_weight / float(np.prod(plan.shape))

        def kl_of(x, params, stats):
            """KL(q(z|x) ‖ N(0, I)) of each example [N]."""
            return gaussian_kl(
                *nets.apply(E[0], params["E"], stats["E"], x, train=True, method="posterior")
            )

        def generate(params, stats, z, key):
            """X_p = G(z_p), z_p ~ N(0, I)."""
            z_p = collectives.sample_batch(jax.random.normal, key, z.shape, plan.axis)
            return nets.apply(G[0], params["G"], stats["G"], z_p, train=True)

        def encoder_loss(params, stats, shared, key):
            """KL(X) + α Σ_{X_r, X_p} [m - KL(X_s)]₊ + β L_AE; no gradient reaches X_s."""
            x_p = generate(params, stats, shared["z"], key)
            made = [jax.lax.stop_gradient(x) for x in (shared["x_hat"], x_p)]
            kl = jnp.mean(gaussian_kl(shared["z"], shared["log_variance"]))
            kl_r, kl_p = (kl_of(x, params, stats) for x in made)
            push = sum(jnp.mean(jax.nn.relu(self.margin - kl)) for kl in (kl_r, kl_p))
            recon = squared_error(shared["x"], shared["x_hat"])
            metrics = {"recon": recon, "kl/x": kl, "kl/r": kl_r.mean(), "kl/p": kl_p.mean()}
            return recon + weight * (kl + self.alpha * push), (metrics, stats)

        def decoder_loss(params, stats, shared, key):
            """α Σ_{X_r, X_p} KL(X_s) + β L_AE."""
            x_p = generate(params, stats, shared["z"], key)
            kl = sum(jnp.mean(kl_of(x, params, stats)) for x in (shared["x_hat"], x_p))
            recon = squared_error(shared["x"], shared["x_hat"])
            return recon + weight * self.alpha * kl, ({}, stats)

        objectives = (
            Objective("encoder", ("E",), encoder_loss, plan.optimizer),
            Objective("decoder", ("G",), decoder_loss, plan.optimizer),
        )
        forward = autoencode_with_noise(E[0], G[0], plan.axis)
        return MethodSpec({"E": E, "G": G}, forward, ("E", "G"), objectives)
