"""One encoded image to pixels, upright; and images of one size to a tensor.

Decoded with Pillow, turned as the orientation flag of a photograph says. One of too many pixels is refused before it is
decoded: a small file can claim to be an image of any size.
"""

import io
import zipfile
import zlib
from collections.abc import Iterable
from typing import IO

import numpy as np
import torch
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from newllm_core.data.errors import DataError

IMAGE_FORMATS = ("JPEG", "PNG")  # Pillow's decoders; its many others are never tried on a file
IMAGE_MODES = ("1", "L", "P", "RGB")  # Pillow's names; anything else would lose alpha, depth or colour space
MAX_PIXELS = 64_000_000  # 192 MB as RGB
_UPRIGHT = 1
# By the value of the EXIF tag Orientation.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow and zipfile raise for bytes that are not what they claim to be.
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    RuntimeError,
    zlib.error,
    zipfile.BadZipFile,
)


def decode_image(content: bytes, channels: int, origin: str) -> np.ndarray:
    """Encoded bytes to uint8 `[channels, height, width]`, upright; 1 channel is grey, 3 is RGB.

    Raises DataError that names ``origin`` for bytes that are no image, a damaged one, or one with other pixels.
    """
    image = open_image(io.BytesIO(content), origin)
    try:
        image.load()
        image = _upright(image)
    except DAMAGE as error:
        raise DataError(f"{origin}: the image is damaged ({error})") from error
    image.info.pop("transparency", None)  # of a palette whose colours are all opaque: `_other_kind` refuses others
    pixels = np.array(image.convert("RGB" if channels == 3 else "L"))
    return pixels.transpose(2, 0, 1) if channels == 3 else pixels[None]


def _upright(image: Image.Image) -> Image.Image:
    # ImageOps.exif_transpose writes all tags anew, and fails on odd ones that have nothing to do with orientation.
    turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, _UPRIGHT))
    return image if turn is None else image.transpose(turn)


def open_image(stream: IO[bytes], origin: str) -> Image.Image:
    """The image with its header read and no pixel decoded.

    Raises DataError for what is no image, has too many pixels, or pixels of another kind than grey or RGB.
    """
    try:
        image: Image.Image = Image.open(stream, formats=IMAGE_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{origin}: {_too_many(MAX_PIXELS)} ({error})") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{origin}: the image is damaged or no image at all; expected JPEG or PNG") from error
    except DAMAGE as error:
        raise DataError(f"{origin}: the image is damaged or no image at all ({error})") from error
    if image.width * image.height > MAX_PIXELS:
        raise DataError(f"{origin}: {_too_many(MAX_PIXELS)}, found {image.width} x {image.height}")
    if (kind := _other_kind(image)) is not None:
        raise DataError(
            f"{origin}: expected a grey or RGB image of 8 bits, found one {kind}; "
            "ImageMagick's `mogrify -background white -alpha remove -colorspace sRGB -depth 8 FILE` makes it one"
        )
    return image


def _other_kind(image: Image.Image) -> str | None:
    """What would be lost of an image, from its header; None for grey and RGB of 8 bits."""
    if image.mode not in IMAGE_MODES:
        return f"of Pillow's mode {image.mode!r}"
    # Pillow reads 16 bits a colour as eight, and keeps the transparent colour of a palette apart.
    assert isinstance(image, ImageFile.ImageFile)
    if any(";16" in str(tile.args) for tile in image.tile):
        return "of 16 bits a colour"
    opacity = image.info.get("transparency")  # of each colour of a palette, or the colour that is not seen
    is_opaque = opacity is None or isinstance(opacity, bytes) and min(opacity, default=255) == 255
    return None if is_opaque else "with a colour marked transparent"


def _too_many(pixels: int) -> str:
    return f"expected an image of at most {pixels / 1e6:.0f} million pixels"


def stack_images(images: Iterable[tuple[str, np.ndarray]]) -> torch.Tensor:
    """Places and images `[channels, h, w]` to uint8 `[n, channels, h, w]`.

    Raises DataError that names one of another size.
    """
    collected: list[np.ndarray] = []
    for origin, image in images:
        if collected and image.shape != collected[0].shape:
            raise DataError(unequal_size(origin, collected[0].shape[1:], image.shape[1:]))
        collected.append(image)
    return torch.from_numpy(np.stack(collected))


def unequal_size(origin: str, expected: tuple[int, ...], found: tuple[int, ...]) -> str:
    """What to say of an image whose height and width are not those of the others."""
    sizes = [f"{width}x{height}" for height, width in (expected, found)]
    return (
        f"{origin}: expected {sizes[0]} pixels, as the images before, found {sizes[1]}; "
        "image_size of the data set brings all to one size"
    )
