"""Our side of the features that `pmjax.bench --evaluation` measures."""

import itertools
import os
import time
from importlib import metadata
from pathlib import Path

import jax
import numpy as np

from pmjax.distributed import host_memory
from pmjax.evals.features import inception_2015


class Features:
    """Features as FID gets them.

    Attributes:
      first: the features float32 [B, 2048] of the images.
      compile_s: seconds of the first batch less a later one's.
    """

    def __init__(self, *, weights: Path, images: np.ndarray, variant: str = "torch_fidelity"):
        """Compiles the net of these weights for a batch of uint8 images [B, H, W, 3]."""
        host_memory.keep_freed_memory(one_arena=True)  # as `pmjax.evaluate`
        self._images = images
        self._args = {"variant": variant, "weights": weights, "verify": False}
        began = time.perf_counter()
        self.first = self._features(1)
        first_s = time.perf_counter() - began
        began = time.perf_counter()
        self._features(1)
        self._batch_s = time.perf_counter() - began
        self.compile_s = max(0.0, first_s - self._batch_s)
        device = jax.local_devices()[0]
        self.gpu = device.platform in ("gpu", "cuda", "rocm")
        self.device = f"{jax.local_device_count()} × {device.device_kind}"
        self.threads = os.cpu_count()
        self.versions = {name: metadata.version(name) for name in ("pmjax", "jax", "jaxlib")}

    def _features(self, batches: int) -> np.ndarray:
        parts = itertools.repeat(self._images, batches)
        given = {"batch_size": len(self._images), **self._args}
        return np.concatenate(list(inception_2015.stream(parts, **given)))

    def block(self, seconds: float) -> tuple[int, float]:
        """Computes features for about so long; returns of how many images, and the seconds."""
        batches = max(1, round(seconds / self._batch_s))
        began = time.perf_counter()
        count = len(self._features(batches))
        return count, time.perf_counter() - began
