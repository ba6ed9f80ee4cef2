"""Image file bytes to upright RGB pixels: what is accepted, how each colour mode is read, and what is refused.

The rules here decide which pixels a vector is made from, so uploads, queries, the CPU and the GPU path share them:
orientation from EXIF is applied, transparency is laid over white, 16-bit samples are scaled (never clipped), only the
first frame of an animation counts, and a damaged file is an error instead of a half-grey picture.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from models.file_structure import excess
from sightlog.errors import SightlogError

#: Codes an `ImageError` can carry; they travel through Triton and end in dead letters, so they never change meaning.
EMPTY = "empty"
UNSUPPORTED_FORMAT = "unsupported_format"
UNDECODABLE = "undecodable"
TOO_MANY_PIXELS = "too_many_pixels"
#: Of a file that would take a decoder minutes, or all memory, whatever its pixels.
TOO_COMPLEX = "too_complex"
#: Of a picture that the models have no finite answer to.
UNEMBEDDABLE = "unembeddable"
ERROR_CODES = frozenset({EMPTY, UNSUPPORTED_FORMAT, UNDECODABLE, TOO_MANY_PIXELS, TOO_COMPLEX, UNEMBEDDABLE})

#: 50 million pixels decode to 150-200 MB, which a preprocessing instance can hold.
DEFAULT_MAX_PIXELS = 50_000_000
#: Longest side of the image that is kept for cropping; 0 keeps every pixel.
DEFAULT_ORIGINAL_CAP = 1920
#: What browsers and product catalogues show behind a transparent picture.
TRANSPARENT_BACKGROUND = (255, 255, 255)

ORIENTATION_TAG = 0x0112
#: A JPEG segment holds 64 KiB; PNG and WebP set no bound, and Pillow's parser takes seconds for megabytes of entries.
MAX_EXIF_BYTES = 256 * 1024
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ALPHA_MODES = frozenset({"RGBA", "LA", "PA", "RGBa", "La"})
_DIRECT_MODES = frozenset({"RGB", "L", "P", "1", "CMYK", "YCbCr", "RGBX"})


# One line in the log for each damaged EXIF entry otherwise, thousands for one picture.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class ImageError(SightlogError):
    """A picture that cannot be used, whoever reads it again; `code` is one of `ERROR_CODES`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


@dataclass(frozen=True)
class UprightImage:
    """A decoded picture the way a person sees it.

    `pixels` is RGB and at most `original_cap` long; `width` and `height` are those of the upright original before
    the cap, the coordinates in which boxes are published.
    """

    pixels: Image.Image
    width: int
    height: int


def sniff_format(data: bytes) -> str | None:
    """Name of the accepted format that `data` begins like (in Pillow's spelling), or None."""
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return None


def capped_size(width: int, height: int, cap: int) -> tuple[int, int]:
    """Size after the longest side is limited to `cap` pixels (0: no limit); never larger, never below one pixel."""
    longest = max(width, height)
    if cap <= 0 or longest <= cap:
        return width, height
    scale = cap / longest
    return max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5))


def open_checked(data: bytes, max_pixels: int = DEFAULT_MAX_PIXELS) -> ImageFile.ImageFile:
    """Read the header only, with the one decoder that fits, and refuse what must not be decoded.

    Raises `ImageError` (any code of `ERROR_CODES`). Pillow's own limit of ~179 million pixels stays behind ours.
    """
    if not data:
        raise ImageError(EMPTY, "there are no bytes; send the encoded file as the value")
    name = sniff_format(data)
    if name is None:
        raise ImageError(
            UNSUPPORTED_FORMAT,
            f"the bytes begin with {data[:12]!r}, as no JPEG, PNG or WebP does; convert the picture",
        )
    if (too_much := excess(name, data)) is not None:
        raise ImageError(TOO_COMPLEX, f"this {name} file has {too_much}; save it anew")
    try:
        image = Image.open(io.BytesIO(data), formats=(name,))
    except Image.DecompressionBombError as error:
        raise ImageError(TOO_MANY_PIXELS, f"{error}; the limit is {max_pixels} pixels, scale it down") from None
    except UnidentifiedImageError:
        raise ImageError(UNDECODABLE, f"the header of this {name} file is damaged; send it again") from None
    except Exception as error:  # Pillow's plugins raise whatever a damaged header trips over
        raise ImageError(UNDECODABLE, f"the header of this {name} file is damaged ({error}); send it again") from None
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(UNDECODABLE, f"the header of this {name} file says {width} x {height} pixels; send it again")
    if width * height > max_pixels:
        raise ImageError(
            TOO_MANY_PIXELS, f"{width} x {height} pixels exceed the limit of {max_pixels}; scale the picture down"
        )
    return image


def decode_upright(
    data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS, cap: int = DEFAULT_ORIGINAL_CAP
) -> UprightImage:
    """Decode the first frame of an image file to upright RGB, its longest side at most `cap` (0: as it is).

    Every pixel is decoded, also of a JPEG far above the cap: decoding it at half size would be twice as fast, but gives
    other pixels than the GPU does, and crops whose vectors differ (cosine down to 0.85).
    Embedded colour profiles are ignored: CMYK becomes RGB by the plain formula.
    Raises `ImageError`.
    """
    image = open_checked(data, max_pixels)
    try:
        image.load()
        orientation = exif_orientation(image)  # after load(): a PNG may have it behind its pixels
        rgb = _to_rgb(image)
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error ...
        raise ImageError(UNDECODABLE, f"the {image.format} data is damaged ({error}); send it again") from None
    width, height = rgb.size
    target = capped_size(width, height, cap)
    if target != rgb.size:
        rgb = rgb.resize(target, Image.Resampling.BILINEAR)
    turn = _TRANSPOSE.get(orientation)
    if turn is None:
        return UprightImage(rgb, width, height)
    if orientation >= 5:
        width, height = height, width
    return UprightImage(rgb.transpose(turn), width, height)


def exif_orientation(image: Image.Image) -> int:
    """EXIF orientation 1-8; damaged metadata is no reason to refuse a picture, so it counts as upright."""
    block = image.info.get("exif") or image.info.get("Raw profile type exif") or b""
    if len(block) > MAX_EXIF_BYTES:
        return 1
    try:
        value = image.getexif().get(ORIENTATION_TAG, 1)
        return value if isinstance(value, int) else 1
    except Exception:  # the EXIF parser raises many types on damaged blocks
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """RGB copy of a loaded image of any accepted mode; raises `ImageError` for samples without a defined white."""
    # Pillow before 11 opens a PNG of 16-bit grey as "I"; the values are the same.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        return _from_16_bit(image)
    if image.mode in _ALPHA_MODES or "transparency" in image.info:
        rgba = image.convert("RGBA")
        background = Image.new("RGB", rgba.size, TRANSPARENT_BACKGROUND)
        background.paste(rgba, mask=rgba.getchannel("A"))
        return background
    if image.mode == "RGB":
        return image
    if image.mode in _DIRECT_MODES:
        return image.convert("RGB")
    raise ImageError(
        UNSUPPORTED_FORMAT,
        f"the {image.format} holds {image.mode} samples of undefined range; save it with 8 or 16 bits a channel",
    )


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Grey of 16 bits scaled to 8 (Pillow's own conversion clips everything above 255 to white)."""
    samples: np.ndarray[Any, Any] = np.asarray(image)
    grey = ((samples.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey[samples == key] = TRANSPARENT_BACKGROUND[0]
    return Image.fromarray(grey).convert("RGB")
