"""Multidimensional interpolation: every latent coordinate is mixed by its own share.

Qian, Li, Cao, Liu, Wu, Wong: Improving Representation Learning in Autoencoders via
Multidimensional Interpolation and Dual Regularizations (2019). It extends ACAI by a maximum mean
discrepancy between z and the prior, and by an adversarial loss on images of the prior.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from pmjax import errors
from pmjax.distributed import collectives
from pmjax.methods.base import LossValue, MethodSpec, NetBuilder, Objective, Shared
from pmjax.methods.losses import imq, mmd, rbf, squared_error
from pmjax.nets.base import Net, Nets

KERNELS = ("imq", "six_rbf")
WIDTHS = (2, 5, 10, 20, 40, 80)  # σ of the authors' kernels


def six_rbf(squared_distance: Array) -> Array:
    """Returns the authors' Σ exp(-‖a - b‖²/(2σ²))."""
    return jnp.sum(jnp.stack([rbf(squared_distance, 2 * width**2) for width in WIDTHS]), 0)


def mix(z: Array, other: Array, alpha: Array) -> Array:
    """Returns α ∘ z + (1 - α) ∘ other for shares α [N, d], one for each coordinate."""
    return alpha * z + (1 - alpha) * other


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """Hyper-parameters; norms are means over values, the weights are those of the authors' code.

    Their code also mixes embeddings with draws of the prior. Here d rates the prior's own images,
    as the paper's summary says. Their weight of the MMD is for a sum of six Gaussian kernels,
    'six_rbf', whose estimate counts as 0 where it is negative.
    """

    mix_weight: float = 0.5  # of ‖d(x_α)‖² for the autoencoder
    generated_weight: float = 0.1  # of ‖d(G(h))‖², h ~ N(0, I), for the autoencoder
    mmd_weight: float = 0.1  # of MMD(q(z), N(0, I))
    mmd_kernel: str = "imq"  # C/(C + ‖a - b‖²) with C = 2·latent_dim; or 'six_rbf', the authors'
    gamma: float = 0.2  # share of x in the blend that d must rate as not mixed
    generated_target: float = 0.5  # d's target for G(h): the largest share that it sees

    prior = "standard_normal"

    def __post_init__(self) -> None:
        errors.require_known("kernel", self.mmd_kernel, KERNELS)

    def spec(self, build: NetBuilder) -> MethodSpec:
        """Returns the nets E, G and d, and the objectives that update them; d is [N, d]."""
        d = Net(build.trunk(build.latent_dim), build.shape)
        nets = {"E": build.encoder(), "G": build.decoder(), "d": d}
        objectives = (
            Objective("critic", ("d",), self.critic_loss),
            Objective("autoencoder", ("E", "G"), self.autoencoder_loss),
        )
        return MethodSpec(nets, self.forward, ("E", "G", "d"), objectives)

    def forward(self, nets: Nets, x: Array, key: Array) -> dict[str, Array]:
        """x_α = G(α ∘ z₁ + (1 - α) ∘ z₂), α ~ U[0, ½]ᵈ; d of x_α, G(h) and γx + (1 - γ)x̂."""
        alpha_key, prior_key = jax.random.split(key)
        z = nets.E(x)
        x_hat = nets.G(z)
        alpha = collectives.sample_batch(jax.random.uniform, alpha_key, z.shape) / 2
        h = collectives.sample_batch(jax.random.normal, prior_key, z.shape)
        mixed = jnp.concatenate([mix(z, collectives.roll_batch(z), alpha), h])
        x_alpha, x_h = jnp.split(nets.G(mixed, update_stats=False), 2)
        d_blend = nets.d(self.gamma * x + (1 - self.gamma) * x_hat)
        d_alpha, d_h = (nets.d(image, update_stats=False) for image in (x_alpha, x_h))
        critic = {"alpha": alpha, "h": h, "d_blend": d_blend, "d_alpha": d_alpha, "d_h": d_h}
        return {"x": x, "z": z, "x_hat": x_hat, **critic}

    def critic_loss(self, nets: Nets, s: Shared, key: Array) -> LossValue:
        """‖d(x_α) - α‖² + ‖d(γx + (1 - γ)x̂)‖² + ‖d(G(h)) - ½‖²."""
        mixed, real = squared_error(s.d_alpha, s.alpha), squared_error(s.d_blend, 0)
        generated = squared_error(s.d_h, self.generated_target)
        metrics = {"d/mix": mixed, "d/real": real, "d/generated": generated}
        return mixed + real + generated, metrics

    def autoencoder_loss(self, nets: Nets, s: Shared, key: Array) -> LossValue:
        """‖x - x̂‖² + ω₁‖d(x_α)‖² + ω₂‖d(G(h))‖² + ω₃ MMD(q(z), N(0, I))."""
        recon = squared_error(s.x, s.x_hat)
        fool_mix, fool_generated = squared_error(s.d_alpha, 0), squared_error(s.d_h, 0)
        if self.mmd_kernel == "imq":
            distance = mmd(s.z, s.h, partial(imq, scale=2 * s.z.shape[-1]))
        else:
            distance = mmd(s.z, s.h, six_rbf)
            distance = jnp.where(collectives.mean(distance) > 0, distance, 0)
        loss = recon + self.mix_weight * fool_mix + self.generated_weight * fool_generated
        metrics = {"recon": recon, "fool/mix": fool_mix, "fool/generated": fool_generated}
        return loss + self.mmd_weight * distance, metrics | {"mmd": distance}
