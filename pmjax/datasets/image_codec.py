"""Decodes image files (PNG, JPEG, …) to square uint8 arrays."""

import io

import numpy as np
from PIL import Image, ImageOps


def decode(data: bytes | np.ndarray, size: int) -> np.ndarray:
    """Decodes an image, crops its central square and resizes it with antialiasing.

    The image is rotated according to EXIF, composited over white where transparent, and scaled
    (not clipped) to 0..255 where deeper than 8 bits; of several frames, the first is used.

    Args:
        data: a file in any format that Pillow reads, or uint8 [H, W] or [H, W, 3].
        size: side of the result in pixels.

    Returns:
        uint8 [size, size] for grayscale modes, else [size, size, 3].

    Raises:
        ValueError: if the image cannot be decoded, with a short reason.
    """
    if isinstance(data, np.ndarray):
        return np.asarray(_square(Image.fromarray(data), size))
    if not data:
        raise ValueError("empty or not readable")
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.draft(None, (3 * size, 3 * size))  # JPEG: skips detail below the final resolution
            ImageOps.exif_transpose(image, in_place=True)
            return np.asarray(_square(to_eight_bit(image), size))
    except Image.UnidentifiedImageError:
        raise ValueError("not an image") from None
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise ValueError(f"more than {limit} million pixels, scale it down first") from None
    except Exception as e:  # decoders raise nearly anything on a broken file
        raise ValueError(str(e) or type(e).__name__) from e


def _square(image: Image.Image, size: int) -> Image.Image:
    """Crops the central square and resizes it."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    return image if side == size else image.resize((size, size), Image.Resampling.BICUBIC)


def to_eight_bit(image: Image.Image) -> Image.Image:
    """Converts any mode to 'L' or 'RGB'."""
    if image.mode.startswith("I"):  # 16 bits, in one of five modes
        values = np.asarray(image.convert("I"))
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("integers outside 0..65535")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        values = np.asarray(image)
        if not (values.min() >= 0 and values.max() <= 1):  # NaN too
            raise ValueError("floats outside 0..1")
        return Image.fromarray((values * 255 + 0.5).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")
