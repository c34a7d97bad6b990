"""Wasserstein autoencoder with a maximum mean discrepancy as its penalty.

Tolstikhin, Bousquet, Gelly, Schölkopf: Wasserstein Auto-Encoders (2018), algorithm 2.
"""

import dataclasses
from typing import Any

import jax
from jax import Array

from pmjax import errors
from pmjax.distributed.collectives import sample_batch
from pmjax.methods.base import LossValue, MethodSpec, NetBuilder, Shared, autoencode, joint_spec
from pmjax.methods.losses import KERNELS, mmd, squared_error
from pmjax.nets.base import Nets


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

    def __post_init__(self) -> None:
        errors.require_known("kernel", self.kernel, KERNELS)

    def spec(self, build: NetBuilder) -> MethodSpec:
        """Returns E and G with one objective."""
        return joint_spec(build.encoder(), build.decoder(), autoencode, self.autoencoder_loss)

    def autoencoder_loss(self, nets: Nets, s: Shared, key: Array) -> LossValue:
        """‖x - x̂‖² + λ MMD(q(z), N(0, I))."""

        def kernel(squared_distance: Array) -> Any:
            scales = [2 * s.z.shape[-1] * scale for scale in self.scales]
            return sum(KERNELS[self.kernel](squared_distance, scale) for scale in scales)

        prior = sample_batch(jax.random.normal, key, s.z.shape)
        recon, distance = squared_error(s.x, s.x_hat), mmd(s.z, prior, kernel)
        return recon + self.weight * distance, {"recon": recon, "mmd": distance}
