"""Multidimensional interpolation: every latent coordinate is mixed by a share of its own.

Qian, Li, Cao, Liu, Wu, Wong: Improving Representation Learning in Autoencoders via
Multidimensional Interpolation and Dual Regularizations (2019). After ACAI, with two additions: a
maximum mean discrepancy to the prior on z, and an adversarial loss on what the prior generates.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from pmjax.distributed import collectives
from pmjax.methods.base import MethodSpec, NetBuilder, Objective, autoencode
from pmjax.methods.losses import imq, mmd, squared_error
from pmjax.nets import base as nets

Array = jax.Array


def mix(z: Array, other: Array, alpha: Array) -> Array:
    """Returns α ∘ z + (1 - α) ∘ other for shares α [N, d], one for each coordinate."""
    return alpha * z + (1 - alpha) * other


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """Hyper-parameters; norms are means over values, and the weights those of the authors' code.

    Their code also mixes embeddings with draws of the prior; here the prior's own images are
    judged, as the paper's summary says.
    """

    mix_weight: float = 0.5  # of ‖d(x_α)‖² for the autoencoder
    generated_weight: float = 0.1  # of ‖d(G(h))‖², h ~ N(0, I), for the autoencoder
    mmd_weight: float = 0.1  # of MMD(q(z), N(0, I)), kernel C/(C + ‖a - b‖²) with C = 2·latent_dim
    gamma: float = 0.2  # share of x in what d must take for real
    generated_target: float = 0.5  # what d says of G(h): the farthest from data that it knows

    prior = "standard_normal"

    def game(self, plan: NetBuilder) -> MethodSpec:
        """Returns the nets E, G and d, and the objectives who move them; d answers in [N, d]."""
        E, G = plan.encoder(batch_norm=False), plan.decoder()
        d = plan.trunk(plan.latent_dim), plan.shape
        encode = autoencode(E[0], G[0])
        everyone = partial(collectives.all_gather, axis=plan.axis)
        kernel = partial(imq, scale=2 * plan.latent_dim)

        def forward(params, stats, batch, key):
            def call(name, net, x):
                return nets.apply(net[0], params[name], stats[name], x, train=True)

            shared, moved = encode(params, stats, batch, key)
            x, z, x_hat = shared["x"], shared["z"], shared["x_hat"]
            alpha_key, prior_key = jax.random.split(key)
            alpha = collectives.sample_batch(jax.random.uniform, alpha_key, z.shape, plan.axis) / 2
            h = collectives.sample_batch(jax.random.normal, prior_key, z.shape, plan.axis)
            z_alpha = mix(z, collectives.roll_batch(z, plan.axis), alpha)
            x_alpha, x_h = jnp.split(call("G", G, jnp.concatenate([z_alpha, h])), 2)
            blend = self.gamma * x + (1 - self.gamma) * x_hat
            d_blend, stats_d = nets.update(d[0], params["d"], stats["d"], blend)
            shared |= {"alpha": alpha, "h": h, "d_blend": d_blend}
            shared |= {"d_alpha": call("d", d, x_alpha), "d_h": call("d", d, x_h)}
            return shared, moved | {"d": stats_d}

        def critic_loss(params, stats, shared, key):
            """‖d(x_α) - α‖² + ‖d(γx + (1 - γ)x̂)‖² + ‖d(G(h)) - ½‖²."""
            mixed = squared_error(shared["d_alpha"], shared["alpha"])
            real = squared_error(shared["d_blend"], 0)
            generated = squared_error(shared["d_h"], self.generated_target)
            metrics = {"d/mix": mixed, "d/real": real, "d/generated": generated}
            return mixed + real + generated, (metrics, stats)

        def autoencoder_loss(params, stats, shared, key):
            """‖x - x̂‖² + ω₁‖d(x_α)‖² + ω₂‖d(G(h))‖² + ω₃ MMD(q(z), N(0, I))."""
            recon = squared_error(shared["x"], shared["x_hat"])
            fool_mix = squared_error(shared["d_alpha"], 0)
            fool_generated = squared_error(shared["d_h"], 0)
            distance = mmd(shared["z"], shared["h"], kernel, everyone)
            loss = recon + self.mix_weight * fool_mix + self.generated_weight * fool_generated
            metrics = {"recon": recon, "fool/mix": fool_mix, "fool/generated": fool_generated}
            return loss + self.mmd_weight * distance, (metrics | {"mmd": distance}, stats)

        objectives = (
            Objective("critic", ("d",), critic_loss, plan.optimizer),
            Objective("autoencoder", ("E", "G"), autoencoder_loss, plan.optimizer),
        )
        everything = {"E": E, "G": G, "d": d}
        return MethodSpec(everything, forward, tuple(everything), objectives)
