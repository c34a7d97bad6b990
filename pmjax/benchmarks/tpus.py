"""Generations of TPUs: their peaks, memory and links, and the shapes of their slices."""

import dataclasses
import math
import re

from pmjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """A generation of TPUs.

    Attributes:
      clock: cycles a second. The vendor gives peaks; peak / (products a cycle · 2) is the clock.
      flops_per_cycle: on bfloat16: matrix units · side² · 2.
      link: bytes a second over one link in one direction.
      hbm: bytes of memory.
      axes: of the torus.
      closes_at: size from which an axis of a slice is closed to a ring, with two links a chip.
      options: that the compiler needs to take a chip as one device.
    """

    clock: float
    flops_per_cycle: int
    link: float
    hbm: float
    axes: int
    closes_at: int
    options: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def peak(self) -> float:
        """FLOP/s on bfloat16."""
        return self.clock * self.flops_per_cycle


# Source of peaks, matrix units and links: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}. Links
# are the stated bandwidth of a chip in both directions / ports / 2: v5e 400 GB/s over 4, v5p 1200
# over 6, v6e 800 over 4; for v4, Jouppi et al. 2023 (arXiv 2304.01433), 6 links of 50 GB/s. The
# all-reduce bandwidth that is stated for pods of v5e and v6e agrees: 51.2 and 102.4 TB/s over 256
# chips are 4 links each. Where a cube of 4 or a side of 16 is complete, the axis is a ring.
CHIPS = {
    "v4": Chip(1.05e9, 2 * 4 * 128**2 * 2, 50e9, 32e9, 3, 4, {"chip_config_name": "megacore"}),
    "v5e": Chip(1.5e9, 4 * 128**2 * 2, 50e9, 16e9, 2, 16),
    "v5p": Chip(1.75e9, 2 * 4 * 128**2 * 2, 100e9, 95e9, 3, 4),
    # The stated 918 T are two units of 256² with two products a cycle at 1.75 GHz, or with one at
    # 3.5. By the compiler's cycles for a large product of matrices it cannot be 3.5.
    "v6e": Chip(1.75e9, 2 * 2 * 256**2 * 2, 100e9, 32e9, 2, 16),
}
EXAMPLES = "v5e:2x2, v5e:4x4, v5e:16x16, v6e:4x4, v4:2x2x1, v5p:2x2x1"


def parse_shape(text: str) -> tuple[Chip, tuple[int, ...]]:
    """Reads a slice's shape such as 'v5e:4x4'.

    Raises:
      UserError: if it has another form; it lists valid ones.
    """
    name, _, sides = text.partition(":")
    found = re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", sides)
    chip = CHIPS.get(name)
    if chip is None or not found or sides.count("x") + 1 != chip.axes:
        raise UserError(
            f"--aot: unknown shape '{text}'. Valid are GENERATION:AxB for v5e and v6e and "
            f"GENERATION:AxBxC for v4 and v5p, several with commas between: {EXAMPLES}."
        )
    return chip, tuple(int(side) for side in sides.split("x"))


def links(chip: Chip, sides: tuple[int, ...]) -> int:
    """Returns over how many links each chip of a slice sends at once in an all-reduce."""
    return sum(0 if side == 1 else 2 if side >= chip.closes_at else 1 for side in sides)


def all_reduce_s(size: float, chip: Chip, sides: tuple[int, ...]) -> float:
    """Returns the seconds that the links need for an all-reduce of `size` bytes.

    Each chip sends (and receives) 2 (n - 1) / n times the bytes, over all its links at once.
    """
    n = math.prod(sides)
    return 2 * (n - 1) / n * size / (links(chip, sides) * chip.link) if n > 1 else 0.0


def all_to_all_s(size: float, chip: Chip, sides: tuple[int, ...]) -> float:
    """Returns the seconds that the links need for an all-to-all of `size` bytes of each chip.

    Half of the chips send half of what they have across the middle of the longest side.
    """
    side = max(sides)
    across = 2 if side >= chip.closes_at else 1
    return side * size / (4 * across * chip.link) if side > 1 else 0.0
