"""Still pictures from outside: a short list of formats, none of which starts a program, and none too large to hold."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import IO

import numpy as np

from curation.media.container import MediaError, open_bytes

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
"""What is opened. Left out, among others: EPS, for which Pillow starts Ghostscript, and TIFF with its many codecs."""


def read_picture(file: str | Path | IO[bytes]) -> np.ndarray | None:
    """A picture, upright as its EXIF says: uint8 [h, w, 3] RGB; of an animation the first. None: it is none of FORMATS.

    Raises:
        MediaError: not a file, too large (Pillow's own limit, 89 megapixels), or broken.
    """
    if isinstance(file, (str, Path)):
        with open_bytes(str(file)) as stream:
            return read_picture(stream)
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=FORMATS) as picture:
                return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    except UnidentifiedImageError:
        return None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        most = (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise MediaError("open", f"the picture is too large; scale it below {most:.0f} megapixels first.") from error
    except Exception as error:  # of a broken one the library raises whatever its parser met
        raise MediaError("open", f"the picture is broken ({error}); save it again as PNG or JPEG.") from error
