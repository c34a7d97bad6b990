"""Data of TPU generations: peaks, memory, links, and the shapes of slices."""

import dataclasses
import math
import re

from pmjax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """A generation of TPUs."""

    clock: float  # cycles per second, the published peak / (products per cycle · 2)
    flops_per_cycle: int  # in bfloat16: matrix units · side² · 2
    link: float  # bytes per second over one link in one direction
    hbm: float  # bytes of memory
    axes: int  # of the torus
    closes_at: int  # size from which an axis of a slice is a ring, with two links per chip
    options: dict[str, str] = dataclasses.field(default_factory=dict)  # so a chip is one device

    @property
    def peak(self) -> float:
        """FLOP/s in bfloat16."""
        return self.clock * self.flops_per_cycle


# Source of peaks, matrix units and links: docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}. A link
# has the stated bidirectional bandwidth of a chip / ports / 2: v5e 400 GB/s over 4, v5p 1200 over
# 6, v6e 800 over 4; for v4, Jouppi et al. 2023 (arXiv 2304.01433), 6 links of 50 GB/s. The stated
# all-reduce bandwidths of v5e and v6e pods agree: 51.2 and 102.4 TB/s over 256 chips are 4 links
# each. Axes with a complete cube of 4 or side of 16 are rings.
CHIPS = {
    "v4": Chip(1.05e9, 2 * 4 * 128**2 * 2, 50e9, 32e9, 3, 4, {"chip_config_name": "megacore"}),
    "v5e": Chip(1.5e9, 4 * 128**2 * 2, 50e9, 16e9, 2, 16),
    "v5p": Chip(1.75e9, 2 * 4 * 128**2 * 2, 100e9, 95e9, 3, 4),
    # The stated 918 T are two units of 256² with two products per cycle at 1.75 GHz, or one at 3.5
    # GHz. The compiler's cycles for a large matrix product exclude 3.5 GHz.
    "v6e": Chip(1.75e9, 2 * 2 * 256**2 * 2, 100e9, 32e9, 2, 16),
}
EXAMPLES = "v5e:2x2, v5e:4x4, v5e:16x16, v6e:4x4, v4:2x2x1, v5p:2x2x1"


def parse_shape(text: str) -> tuple[Chip, tuple[int, ...]]:
    """Parses the shape of a slice, such as 'v5e:4x4'.

    Raises:
      UserError: if it is not valid, with valid examples.
    """
    name, _, sides = text.partition(":")
    found = re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", sides)
    chip = CHIPS.get(name)
    if chip is None or not found or sides.count("x") + 1 != chip.axes:
        raise UserError(
            f"--aot: unknown shape '{text}'. Valid are GENERATION:AxB for v5e and v6e and "
            f"GENERATION:AxBxC for v4 and v5p, separated by commas: {EXAMPLES}."
        )
    return chip, tuple(int(side) for side in sides.split("x"))


def links(chip: Chip, sides: tuple[int, ...]) -> int:
    """Returns the number of links per chip that an all-reduce uses at the same time."""
    return sum(0 if side == 1 else 2 if side >= chip.closes_at else 1 for side in sides)


def all_reduce_s(size: float, chip: Chip, sides: tuple[int, ...]) -> float:
    """Returns the seconds of an all-reduce of `size` bytes on the links.

    Each chip sends (and receives) 2 (n - 1) / n times the bytes over all its links.
    """
    n = math.prod(sides)
    return 2 * (n - 1) / n * size / (links(chip, sides) * chip.link) if n > 1 else 0.0


def all_to_all_s(size: float, chip: Chip, sides: tuple[int, ...]) -> float:
    """Returns the seconds of an all-to-all of `size` bytes per chip on the links.

    Half of the chips send half of their bytes across the middle of the longest side.
    """
    side = max(sides)
    across = 2 if side >= chip.closes_at else 1
    return side * size / (4 * across * chip.link) if side > 1 else 0.0
