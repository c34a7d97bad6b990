"""Adversarial generator-encoder: E and G play against each other, without any critic.

Ulyanov, Vedaldi, Lempitsky: It Takes (Only) Two (2018), equations (3) to (8). Both latent
distributions are on the sphere; their divergence Δ from the uniform one is that of Gaussians with
the batch's means and variances from N(0, I). (The sphere's radius is 1 for all but Δ, where it is
√d, so that the uniform distribution has variance 1.)
"""

import dataclasses

import jax
import jax.numpy as jnp

from pmjax.distributed import collectives
from pmjax.methods.base import MethodSpec, NetBuilder, Objective, Sphere, autoencode
from pmjax.methods.losses import absolute_error, squared_error
from pmjax.nets import base as nets

Array = jax.Array


def divergence(z: Array, axis: str | None) -> Array:
    """Returns Δ(z): KL(N(m, s²) ‖ N(0, 1)) for √d·z of the global batch, mean over coordinates."""
    z = z * z.shape[-1] ** 0.5
    mean = collectives.mean(jnp.mean(z, 0), axis)
    variance = collectives.mean(jnp.mean(jnp.square(z - mean), 0), axis) + 1e-6
    return jnp.mean(jnp.square(mean) + variance - 1 - jnp.log(variance)) / 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """Hyper-parameters; norms are means over an example's values.

    The authors' own weights are 10, 0 and 1000. Where E and G are perceptrons, E then wins: G
    never sees an image, and reconstruction and samples stay noise.
    """

    mu: float = 10.0  # weight of |x - G(E(x))| for E
    generator_mu: float = 10.0  # the same for G
    lambda_: float = 10.0  # weight of 1 - cos(z_p, E(G(z_p))) for G
    generator_repeats: int = 2  # updates of G in each step

    prior = "sphere_uniform"

    def game(self, plan: NetBuilder) -> MethodSpec:
        """Returns the nets E and G, and the objectives who move them."""
        E, G = plan.encoder(sphere=True), plan.decoder()

        def generate(params, stats, z, key):
            """Draws z_p from the sphere; returns it, G(z_p), and G's statistics."""
            noise = collectives.sample_batch(jax.random.normal, key, z.shape, plan.axis)
            z_p = Sphere()(noise, train=True)
            return z_p, *nets.update(G[0], params["G"], stats["G"], z_p)

        def encode(params, stats, x):
            return nets.apply(E[0], params["E"], stats["E"], x, train=True)

        def encoder_loss(params, stats, shared, key):
            """Δ(E(x)) - Δ(E(G(z_p))) + μ |x - x̂|."""
            _, x_p, _ = generate(params, stats, shared["z"], key)
            real = divergence(shared["z"], plan.axis)
            fake = divergence(encode(params, stats, jax.lax.stop_gradient(x_p)), plan.axis)
            recon = squared_error(shared["x"], shared["x_hat"])
            loss = real - fake + self.mu * absolute_error(shared["x"], shared["x_hat"])
            return loss, ({"recon": recon, "delta/real": real, "delta/fake": fake}, stats)

        def generator_loss(params, stats, shared, key):
            """Δ(E(G(z_p))) + λ (1 - cos(z_p, E(G(z_p)))), and μ |x - x̂| if G has a share in it."""
            z_p, x_p, stats_G = generate(params, stats, shared["z"], key)
            back = encode(params, stats, x_p)
            cosine = jnp.mean(jnp.sum(z_p * back, -1))
            loss = divergence(back, plan.axis) + self.lambda_ * (1 - cosine)
            loss += self.generator_mu * absolute_error(shared["x"], shared["x_hat"])
            return loss, ({"cosine": cosine}, stats | {"G": stats_G})

        objectives = (
            Objective("encoder", ("E",), encoder_loss, plan.optimizer),
            Objective("generator", ("G",), generator_loss, plan.optimizer, self.generator_repeats),
        )
        return MethodSpec({"E": E, "G": G}, autoencode(E[0], G[0]), ("E", "G"), objectives)
