"""PNG files of images, and grids of many."""

import dataclasses
import math
from pathlib import Path

import numpy as np
from PIL import Image

MARGIN = 2  # pixels around and between the images of a grid


@dataclasses.dataclass(frozen=True)
class Figure:
    """A picture of a report: its title, a sentence on what it shows, and the path of the PNG."""

    title: str
    caption: str
    path: Path


def grid(images: np.ndarray, columns: int | None = None) -> np.ndarray:
    """Lays out uint8 images [N,H,W,C], C in {1, 3}, row by row on white: uint8 [H',W',3].

    Small images are enlarged by a whole factor to about 56 pixels of width, so that each pixel
    stays a square. `columns` defaults to the square root of N, rounded up.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise ValueError(f"grid needs uint8 [N,H,W,1 or 3], got {images.dtype} {images.shape}")
    scale = max(1, round(56 / images.shape[2]))
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    num, height, width, _ = images.shape
    columns = columns or max(1, math.ceil(math.sqrt(num)))
    rows = -(-num // columns)
    step_y, step_x = height + MARGIN, width + MARGIN
    sheet = np.full((rows * step_y + MARGIN, columns * step_x + MARGIN, 3), 255, np.uint8)
    for i, image in enumerate(images):
        y, x = MARGIN + i // columns * step_y, MARGIN + i % columns * step_x
        sheet[y : y + height, x : x + width] = image
    return sheet


def save_png(path: Path, image: np.ndarray) -> None:
    """Writes a uint8 image [H,W,3]; makes its folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, format="PNG", optimize=True)
