"""Starts JAX, with one message if a requested or present accelerator is not used."""

import functools
import glob
import logging
import os
from typing import NamedTuple

import jax

from pmjax.errors import UserError

log = logging.getLogger(__name__)


class Accelerator(NamedTuple):
    """A kind of device."""

    kind: str
    platforms: tuple[str, ...]  # JAX's names
    files: tuple[str, ...]  # patterns of its device files
    install: str  # how to install JAX's support


_PIP = 'pip install "pmjax[{}]"'
KNOWN = (
    Accelerator("an NVIDIA GPU", ("cuda", "gpu"), ("/dev/nvidia[0-9]*",), _PIP.format("cuda13")),
    Accelerator("a TPU", ("tpu",), ("/dev/accel[0-9]*", "/dev/vfio/[0-9]*"), _PIP.format("tpu")),
    Accelerator("an AMD GPU", ("rocm",), ("/dev/kfd",), "see JAX's installation guide"),
)


@functools.cache
def start() -> None:
    """Initializes JAX's devices; warns if the machine has an accelerator that JAX does not see.

    Only the first call has an effect. Several processes must be connected before it.

    Raises:
      UserError: if JAX does not find the platform that JAX_PLATFORMS names.
    """
    named = jax.config.jax_platforms  # type: ignore[attr-defined]
    variable = "JAX_PLATFORMS" if named else "JAX_PLATFORM_NAME"
    named = named or os.environ.get(variable, "")
    try:
        found = jax.devices()
    except (RuntimeError, AssertionError) as error:
        why = f" ({str(error).partition(' (set ')[0]})" if str(error) else ""
        wanted = [each for each in KNOWN if named.partition(",")[0] in each.platforms]
        raise UserError(
            f"JAX finds no device with {variable}='{named}'{why}. To use the CPU, set "
            f"{variable}=cpu." + "".join(f" To install support: {each.install}." for each in wanted)
        ) from error
    if named or found[0].platform != "cpu":
        return
    for each in KNOWN:
        # An empty CUDA_VISIBLE_DEVICES hides the GPUs on purpose.
        hidden = "cuda" in each.platforms and os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
        there = sorted(file for pattern in each.files for file in glob.glob(pattern))
        if there and not hidden:
            log.warning(
                f"This machine seems to have {each.kind} ({there[0]}), but JAX uses the CPU: its "
                f"support is not installed or failed. To install it: {each.install}. To use the "
                "CPU without this warning, set JAX_PLATFORMS=cpu."
            )
