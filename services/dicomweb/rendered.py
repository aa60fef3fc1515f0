"""Frames as pictures for people (PS3.18 section 10.4.1.1.3): a look at what is there, not for diagnosis."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut

from imaging.errors import InputError
from imaging.windows import EMBOLUS_WINDOW_HU
from services.dicom.headers import MALFORMED, first_item, integer, number, text
from services.dicom.series_summary import modality_of
from services.dicomweb.accept import NotAcceptable
from services.dicomweb.frames import Frames
from services.dicomweb.search_query import BAD_QUERY

FORMATS = {"image/jpeg": "JPEG", "image/png": "PNG"}  # the first is the default of PS3.18
_LARGEST_VIEWPORT_PX = 4096
_FUNCTIONS = ("linear", "linear-exact", "sigmoid")


@dataclass(frozen=True, slots=True)
class Window:
    """A VOI function (PS3.3 C.11.2.1.2, C.11.2.1.3)."""

    center: float
    width: float
    function: str = "linear"

    def apply(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """0 to 255."""
        x = values.astype(np.float64)
        if self.function == "sigmoid":
            with np.errstate(over="ignore"):
                grey = 1.0 / (1.0 + np.exp(-4.0 * (x - self.center) / self.width))
        elif self.function == "linear-exact":
            grey = (x - self.center) / self.width + 0.5
        else:
            grey = (x - (self.center - 0.5)) / max(self.width - 1.0, 1e-6) + 0.5
        return np.rint(np.clip(grey, 0.0, 1.0) * 255.0).astype(np.uint8)


@dataclass(frozen=True, slots=True)
class Rendering:
    """What the client asks for; `viewport` is (width, height) in pixels, which the picture is scaled to fit into."""

    media_type: str
    window: Window | None = None
    viewport: tuple[int, int] | None = None
    quality: int = 90


def read_window(parameter: str) -> Window:
    """`center,width,function`.

    Raises:
        InputError: `dicomweb.bad_request`.
    """
    center, _, rest = parameter.partition(",")
    width, _, function = rest.partition(",")
    function = (function or "linear").lower()
    try:
        window = Window(float(center), float(width), function)
    except ValueError:
        window = Window(0.0, 0.0)
    if not (np.isfinite(window.center) and np.isfinite(window.width) and window.width > 0 and function in _FUNCTIONS):
        raise InputError(
            f"window {parameter[:100]!r}",
            code=BAD_QUERY,
            remedy=f"window=center,width,function ({', '.join(_FUNCTIONS)})",
        )
    return window


def read_viewport(parameter: str) -> tuple[int, int]:
    """`width,height`; a region of the source is not cut out.

    Raises:
        InputError: `dicomweb.bad_request`.
    """
    numbers = parameter.split(",")
    if len(numbers) == 2 and all(one.isascii() and one.isdigit() for one in numbers):
        width, height = map(int, numbers)
        if 0 < width <= _LARGEST_VIEWPORT_PX and 0 < height <= _LARGEST_VIEWPORT_PX:
            return width, height
    raise InputError(
        f"viewport {parameter[:100]!r}", code=BAD_QUERY, remedy=f"viewport=width,height, up to {_LARGEST_VIEWPORT_PX}"
    )


def rendered(frames: Frames, index: int, rendering: Rendering) -> bytes:
    """A frame as an encoded picture.

    Raises:
        NotAcceptable: the instance has no pixels (SR, PDF), or they cannot be decoded here.
    """
    try:
        pixels = _grey_or_rgb(frames, index, rendering.window)
    except MALFORMED as error:
        raise NotAcceptable(f"the frame cannot be shown ({type(error).__name__})") from error
    picture = Image.fromarray(pixels)
    if rendering.viewport is not None:
        scale = min(rendering.viewport[0] / picture.width, rendering.viewport[1] / picture.height)
        picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    encoded = BytesIO()
    picture.save(encoded, FORMATS[rendering.media_type], quality=rendering.quality)
    return encoded.getvalue()


def _grey_or_rgb(frames: Frames, index: int, window: Window | None) -> NDArray[np.uint8]:
    header = frames.header
    pixels = frames.meant(index)
    photometric = text(header, "PhotometricInterpretation")
    if photometric == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, header)
        pixels = pixels >> 8 if pixels.dtype.itemsize > 1 else pixels
    if pixels.ndim == 3:
        return np.ascontiguousarray(pixels[..., :3].astype(np.uint8))
    if modality_of(header) == "SEG":
        return _mask(pixels, header)
    slope, intercept = _number(header, index, "RescaleSlope", 1.0), _number(header, index, "RescaleIntercept", 0.0)
    values = pixels * slope + intercept
    grey = (window or _usual_window(header, index, values)).apply(values)
    return 255 - grey if photometric == "MONOCHROME1" else grey


def _mask(pixels: NDArray[Any], header: Dataset) -> NDArray[np.uint8]:
    """Segments in white, probabilities and labels in steps of grey."""
    kind = text(header, "SegmentationType")
    if kind == "FRACTIONAL":
        most = integer(header, "MaximumFractionalValue") or 255
    else:
        most = len(header.get("SegmentSequence") or []) if kind == "LABELMAP" else 1
    return np.rint(np.clip(pixels / max(1, most), 0.0, 1.0) * 255.0).astype(np.uint8)


def _usual_window(header: Dataset, index: int, values: NDArray[Any]) -> Window:
    """The first window of the image; without one, a window for clot and lumen for CT, else all values."""
    center, width = _number(header, index, "WindowCenter", None), _number(header, index, "WindowWidth", None)
    if center is not None and width is not None and width > 0:
        function = text(header, "VOILUTFunction").lower().replace("_", "-") or "linear"
        return Window(center, width, function if function in _FUNCTIONS else "linear")
    low, high = EMBOLUS_WINDOW_HU if modality_of(header) == "CT" else (float(values.min()), float(values.max()))
    return Window((low + high) / 2, max(high - low, 1e-6), "linear-exact")


def _number(header: Dataset, index: int, keyword: str, default: Any) -> Any:
    """The first value of the attribute in the header, the frame's functional groups or the shared ones."""
    macro = "FrameVOILUTSequence" if keyword.startswith("Window") else "PixelValueTransformationSequence"
    groups = [first_item(header, "SharedFunctionalGroupsSequence")]
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or []
    if index < len(per_frame):
        groups.insert(0, per_frame[index])
    for source in (header, *(first_item(group, macro) for group in groups if group is not None)):
        if source is not None and (found := text(source, keyword)):
            first = Dataset()
            setattr(first, keyword, found.split("\\")[0])
            return number(first, keyword)
    return default
