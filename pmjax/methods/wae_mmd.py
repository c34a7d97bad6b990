"""Wasserstein autoencoder whose penalty is a maximum mean discrepancy.

Tolstikhin, Bousquet, Gelly, Schölkopf: Wasserstein Auto-Encoders (2018), algorithm 2.
"""

import dataclasses
from functools import partial

import jax

from pmjax import errors
from pmjax.distributed import collectives
from pmjax.methods.base import MethodSpec, NetBuilder, Objective, autoencode
from pmjax.methods.losses import KERNELS, mmd, squared_error


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """Hyper-parameters; norms are means over an example's values.

    The paper's λ (10 on MNIST, in [0, 1], for sums over 784 values) would be 0.05 here, which
    leaves the embeddings farther from the prior than an adversarial autoencoder does.
    """

    weight: float = 0.2  # λ
    kernel: str = "imq"  # C/(C + ‖a - b‖²), or 'rbf', exp(-‖a - b‖²/C), with C = 2·latent_dim·s
    scales: tuple = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # s, over which the kernel is summed

    prior = "standard_normal"

    def __post_init__(self):
        if self.kernel not in KERNELS:
            raise errors.unknown("kernel", self.kernel, KERNELS)

    def game(self, plan: NetBuilder) -> MethodSpec:
        """Returns the nets E and G, and the objective who moves both."""
        E, G = plan.encoder(batch_norm=False), plan.decoder()
        everyone = partial(collectives.all_gather, axis=plan.axis)

        def kernel(squared_distance):
            scales = [2 * plan.latent_dim * scale for scale in self.scales]
            return sum(KERNELS[self.kernel](squared_distance, scale) for scale in scales)

        def autoencoder_loss(params, stats, shared, key):
            """‖x - x̂‖² + λ MMD(q(z), N(0, I))."""
            z = shared["z"]
            prior = collectives.sample_batch(jax.random.normal, key, z.shape, plan.axis)
            recon = squared_error(shared["x"], shared["x_hat"])
            penalty = mmd(z, prior, kernel, everyone)
            return recon + self.weight * penalty, ({"recon": recon, "mmd": penalty}, stats)

        autoencoder = Objective("autoencoder", ("E", "G"), autoencoder_loss, plan.optimizer)
        return MethodSpec({"E": E, "G": G}, autoencode(E[0], G[0]), ("E", "G"), (autoencoder,))
