"""Starts JAX: one message if the accelerator that was asked for, or is there, is not used."""

import functools
import glob
import logging
import os
from typing import NamedTuple

import jax

from pmjax.errors import UserError

log = logging.getLogger(__name__)


class Accelerator(NamedTuple):
    """A kind of device: JAX's names of its platform, its device files, and how to install JAX."""

    kind: str
    platforms: tuple[str, ...]
    files: tuple[str, ...]
    install: str


KNOWN = (
    Accelerator(
        "an NVIDIA GPU", ("cuda", "gpu"), ("/dev/nvidia[0-9]*",), 'pip install "pmjax[cuda13]"'
    ),
    Accelerator(
        "a TPU", ("tpu",), ("/dev/accel[0-9]*", "/dev/vfio/[0-9]*"), 'pip install "pmjax[tpu]"'
    ),
    Accelerator("an AMD GPU", ("rocm",), ("/dev/kfd",), "see JAX's installation guide"),
)


@functools.cache
def start(known: tuple[Accelerator, ...] = KNOWN) -> None:
    """Initializes JAX's devices; warns if the machine has an accelerator that JAX does not see.

    Only the first call does anything. With several processes, call it once they are connected.

    Raises:
      UserError: if the platform that JAX_PLATFORMS names is not there.
    """
    named = jax.config.jax_platforms  # type: ignore[attr-defined]
    variable = "JAX_PLATFORMS" if named else "JAX_PLATFORM_NAME"
    named = named or os.environ.get(variable, "")
    try:
        found = jax.devices()
    except (RuntimeError, AssertionError) as error:
        why = f" ({str(error).partition(' (set ')[0]})" if str(error) else ""
        install = [each.install for each in known if named.partition(",")[0] in each.platforms]
        raise UserError(
            f"JAX finds no device with {variable}='{named}'{why}. To use the CPU, set "
            f"{variable}=cpu." + "".join(f" To install support of it: {how}." for how in install)
        ) from error
    if named or found[0].platform != "cpu":
        return
    for each in known:
        # An empty CUDA_VISIBLE_DEVICES hides the GPUs on purpose.
        hidden = "cuda" in each.platforms and os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
        there = sorted(file for pattern in each.files for file in glob.glob(pattern))
        if there and not hidden:
            log.warning(
                f"This machine seems to have {each.kind} ({there[0]}), but JAX uses the CPU: "
                f"support of it is not installed, or it failed. To install it: {each.install}. "
                "To use the CPU without this warning, set JAX_PLATFORMS=cpu."
            )
