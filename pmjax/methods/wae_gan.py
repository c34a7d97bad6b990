"""Wasserstein autoencoder with a latent GAN as its penalty.

Tolstikhin, Bousquet, Gelly, Schölkopf: Wasserstein Auto-Encoders (2018), algorithm 1. They note
that with squared error it is an adversarial autoencoder; only the weight λ differs here.
"""

import dataclasses

from pmjax.methods import aae


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method(aae.Method):
    """Hyper-parameters; norms are means over an example's values.

    The paper's λ (10 on MNIST, in [0, 1], for sums over 784 values) would be 0.05 here. The
    critic's spectral norm, which the paper does not have, allows a smaller one.
    """

    weight: float = 0.02  # λ
