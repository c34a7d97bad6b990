"""A finished run without priors, for tests that fit or train them on demand."""

import numpy as np
import pytest

from pmjax import builders, config
from pmjax.storage import checkpoint
from pmjax.storage import workdir as workdirs
from pmjax.training import snapshots
from tests.priors.train_prior import start
from tests.small_run import ROOT


@pytest.fixture
def finished(tmp_path):
    """Returns a workdir as a run with a fitted prior leaves it; nothing in it is trained."""
    settings = config.load(
        f"{ROOT}/configs/digits.py:runlocal",
        {
            "nets": "mlp",
            "nets_args.width": "8",
            "latent_dim": "4",
            "prior": "gmm",
            "stage2.steps": "20",
            "stage2.steps_per_dispatch": "10",
            "checkpoint.every": "10",
        },
    )
    workdirs.claim(settings, tmp_path)
    state = start(builders.stage1_spec(settings, (28, 28, 1)))
    arrays = snapshots.autoencoder_arrays(state, (28, 28, 1))
    checkpoint.write_arrays(tmp_path / workdirs.AUTOENCODER, arrays)
    z = np.random.default_rng(0).normal(size=(100, 4)).astype("float32")
    workdirs.write_embeddings(tmp_path, z)
    return tmp_path
