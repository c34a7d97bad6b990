"""Wasserstein autoencoder whose penalty is a latent GAN.

Tolstikhin, Bousquet, Gelly, Schölkopf: Wasserstein Auto-Encoders (2018), algorithm 1. They note
that with squared error it is an adversarial autoencoder; what differs here is the weight λ.
"""

import dataclasses

from pmjax.methods import aae


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method(aae.Method):
    """Hyper-parameters; norms are means over an example's values.

    The paper's λ (10 on MNIST, in [0, 1], for sums over 784 values) would be 0.05 here; the
    critic's spectral norm (they have none) makes less do.
    """

    weight: float = 0.02  # λ
