"""Introspective variational autoencoder: the encoder is the critic of what the decoder generates.

Huang, Li, He, Sun, Tan: IntroVAE (2018), algorithm 1: their L_REG is the KL divergence to N(0, I)
here, and their L_AE half the sum of squared errors.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from pmjax.distributed import collectives
from pmjax.methods.base import LossValue, MethodSpec, NetBuilder, Objective, Shared, autoencode_vae
from pmjax.methods.losses import gaussian_kl, num_values, squared_error
from pmjax.nets.base import Nets


def generate(nets: Nets, s: Shared, key: Array) -> Array:
    """X_p = G(z_p), z_p ~ N(0, I)."""
    return nets.G(collectives.sample_batch(jax.random.normal, key, s.z.shape), update_stats=False)


def kl_of(nets: Nets, x: Array) -> Array:
    """KL(q(z|x) ‖ N(0, I)) of each example, [N]."""
    return gaussian_kl(*nets.E.posterior(x, update_stats=False))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """Hyper-parameters.

    Both losses are the paper's times 2/(values of an example · its β): the reconstruction is a
    mean over an example's values, and `kl_weight` is 2/β. On images of 28×28 the paper's α, 0.25
    and more, generates noise; the margin must be slightly above KL(X).

    The margin applies to each example. The authors' code applies it to the mean divergence of a
    batch, which pushes all of its examples or none: `mean_margin`. Their E and G see the same X_p;
    here each draws its own, so that their gradients have other noise but the same expectation.
    """

    kl_weight: float = 1.0  # of all KL divergences, in nats over an example's number of values
    alpha: float = 0.1  # share of the adversarial KL divergences
    margin: float = 30.0  # m, nats: E raises the divergence of generated images up to m
    mean_margin: bool = False  # whether m applies to the batch's mean divergence

    prior = "standard_normal"

    def spec(self, build: NetBuilder) -> MethodSpec:
        """Returns the nets E and G, and the objectives that update them."""
        objectives = (
            Objective("encoder", ("E",), self.encoder_loss),
            Objective("decoder", ("G",), self.decoder_loss),
        )
        nets = {"E": build.posterior(), "G": build.decoder()}
        return MethodSpec(nets, autoencode_vae, ("E", "G"), objectives)

    def encoder_loss(self, nets: Nets, s: Shared, key: Array) -> LossValue:
        """KL(X) + α Σ_{X_r, X_p} [m - KL(X_s)]₊ + β L_AE; no gradient flows into X_s."""
        generated = [jax.lax.stop_gradient(x) for x in (s.x_hat, generate(nets, s, key))]
        kl = jnp.mean(gaussian_kl(s.z, s.log_variance))
        kl_r, kl_p = (kl_of(nets, x) for x in generated)
        reached = (
            collectives.mean(jnp.mean(kl)) if self.mean_margin else kl for kl in (kl_r, kl_p)
        )
        push = sum(jnp.mean(jax.nn.relu(self.margin - kl)) for kl in reached)
        recon = squared_error(s.x, s.x_hat)
        metrics = {"recon": recon, "kl/x": kl, "kl/r": kl_r.mean(), "kl/p": kl_p.mean()}
        return recon + self.kl_weight / num_values(s.x) * (kl + self.alpha * push), metrics

    def decoder_loss(self, nets: Nets, s: Shared, key: Array) -> LossValue:
        """α Σ_{X_r, X_p} KL(X_s) + β L_AE."""
        kl = sum(jnp.mean(kl_of(nets, x)) for x in (s.x_hat, generate(nets, s, key)))
        recon = squared_error(s.x, s.x_hat)
        return recon + self.kl_weight / num_values(s.x) * self.alpha * kl, {}
