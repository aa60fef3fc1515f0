"""`performDetect` and `performBatchDetect` with darknet's own names, arguments and answers, on our torch network.

Names are darknet's, so that programs written for its Python wrapper run unchanged: import them from `darknet_python`.
A GPU is used where there is one, unless the environment says FORCE_CPU=1 or CUDA_VISIBLE_DEVICES=-1.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from imaging.errors import ConfigurationError, InputError
from models.darknet.config import parse_cfg
from models.darknet.detection import Detection, detect, detect_one_class_each
from models.darknet.detection_picture import ALPHA, Picture, draw_box
from models.darknet.metadata import class_names
from models.darknet.network import DarknetNetwork
from models.darknet.weights import read_weights

PixelBox = tuple[float, float, float, float]
"""Centre x, centre y, width, height in pixels of the image."""
Labelled = tuple[str, float, PixelBox]
"""Class name, confidence 0..1, box."""

IOU_THRESHOLD = 0.45
DETECTORS_KEPT = 4
PILLOW_MODES = {1: "L", 3: "RGB"}  # by the channels of the network


class DetectionsWithPicture(TypedDict):
    """`image` is (rows, columns, RGB) uint8 with the boxes drawn; `caption` has one "name: NN%" for each."""

    detections: list[Labelled]
    image: Picture
    caption: str


@dataclass(frozen=True, slots=True)
class _Detector:
    network: DarknetNetwork
    names: Sequence[str]
    device: torch.device


def performDetect(
    imagePath: str | os.PathLike[str] = "data/dog.jpg",
    thresh: float = 0.25,
    configPath: str | os.PathLike[str] = "./cfg/yolov4.cfg",
    weightPath: str | os.PathLike[str] = "yolov4.weights",
    metaPath: str | os.PathLike[str] = "./cfg/coco.data",
    showImage: bool = True,
    makeImageOnly: bool = False,
    initOnly: bool = False,
) -> list[Labelled] | DetectionsWithPicture | None:
    """Detects objects in one image, which is stretched to the network's size bilinearly.

    The network is kept for the next call with the same files.

    Args:
        thresh: what objectness and confidence must exceed.
        metaPath: the .data file, whose `names=` line says where the class names are.
        showImage: draw the boxes, show the picture, and return it too.
        makeImageOnly: do not show the picture.
        initOnly: only load the network.

    Returns:
        [(name, confidence, (centre x, centre y, width, height) in pixels)], most confident first; with `showImage` a
        `DetectionsWithPicture`; with `initOnly` None.

    Raises:
        AssertionError: `thresh` is not between 0 and 1.
        ValueError: a path leads nowhere.
        ConfigurationError: a file that is there is not what it should be.
        InputError: the image cannot be read.
    """
    detector = _detector(thresh, configPath, weightPath, metaPath)
    if initOnly:
        return None
    image = _read_image(_existing(imagePath, "image"), detector.network)
    (found,) = detect(
        detector.network, _stretched([image], detector, "bilinear"), threshold=thresh, iou_threshold=IOU_THRESHOLD
    )
    rows, columns = image.shape[:2]
    detections = [(detector.names[d.class_index], d.score, _pixel_box(d, rows, columns)) for d in found]
    if not showImage:
        return detections
    picture = _as_rgb(image)
    for _, confidence, (cx, cy, width, height) in detections:
        left, top = int(cx - width / 2), int(cy - height / 2)
        draw_box(picture, left, top, left + int(width), top + int(height), confidence, thickness=3, alpha=ALPHA)
    if not makeImageOnly:
        Image.fromarray(picture).show()
    caption = "\n<br/>".join(f"{name}: {round(100 * confidence)}%" for name, confidence, _ in detections)
    return {"detections": detections, "image": picture, "caption": caption}


def performBatchDetect(
    img_list: Sequence[str | os.PathLike[str]] = ("data/person.jpg", "data/person.jpg", "data/person.jpg"),
    thresh: float = 0.25,
    configPath: str | os.PathLike[str] = "./cfg/yolov4.cfg",
    weightPath: str | os.PathLike[str] = "yolov4.weights",
    metaPath: str | os.PathLike[str] = "./cfg/coco.data",
    hier_thresh: float = 0.5,
    nms: float = IOU_THRESHOLD,
    batch_size: int = 3,
) -> tuple[list[list[tuple[int, int, int, int]]], list[list[float]], list[list[int]]]:
    """Detects objects in images of one size, stretched to the network's by the nearest pixel.

    Each image with its boxes is written into the working directory under its own file name, or as
    NAME_detections.EXT where that would replace the image itself.

    Args:
        hier_thresh: only for networks with a tree of classes, which are not supported; ignored.
        nms: of two boxes of any class that overlap more, the one of lower objectness is dropped; 0 keeps all.
        batch_size: images in one pass.

    Returns:
        for each image the boxes (top, left, bottom, right) in whole pixels, their confidences and class numbers,
        highest objectness first.

    Raises:
        as `performDetect`; ValueError also where images differ in size or would be written to one file.
    """
    detector = _detector(thresh, configPath, weightPath, metaPath)
    paths = [_existing(path, "image") for path in img_list]
    written_to = _picture_paths(paths)
    images = [_read_image(path, detector.network) for path in paths]
    if len(sizes := {image.shape[:2] for image in images}) > 1:
        raise ValueError(f"images of different sizes (rows, columns): {sorted(sizes)}")
    found: list[list[Detection]] = []
    for start in range(0, len(images), max(1, batch_size)):
        batch = _stretched(images[start : start + max(1, batch_size)], detector, "nearest")
        found += detect_one_class_each(detector.network, batch, threshold=thresh, iou_threshold=nms or 1.0)
    batch_boxes = [
        [_corners(detection, *image.shape[:2]) for detection in detections]
        for image, detections in zip(images, found, strict=True)
    ]
    batch_scores = [[detection.score for detection in detections] for detections in found]
    batch_classes = [[detection.class_index for detection in detections] for detections in found]
    for image, path, boxes, scores in zip(images, written_to, batch_boxes, batch_scores, strict=True):
        picture = _as_rgb(image)
        for (top, left, bottom, right), score in zip(boxes, scores, strict=True):
            draw_box(picture, left, top, right, bottom, score, thickness=2, alpha=1.0)
        Image.fromarray(picture).save(path)
    return batch_boxes, batch_scores, batch_classes


def _detector(
    thresh: float,
    config: str | os.PathLike[str],
    weights: str | os.PathLike[str],
    data_file: str | os.PathLike[str],
) -> _Detector:
    assert 0 < thresh < 1, f"thresh is {thresh}, it must lie between 0 and 1"
    paths = [
        _existing(path, what) for path, what in ((config, "config"), (weights, "weights"), (data_file, "data file"))
    ]
    # the times tell a file that was written anew, the directory where names= is looked up
    return _load(*paths, tuple(path.stat().st_mtime_ns for path in paths), Path.cwd(), _device())


@lru_cache(maxsize=DETECTORS_KEPT)
def _load(
    config: Path, weights: Path, data_file: Path, _times: tuple[int, ...], _directory: Path, device: torch.device
) -> _Detector:
    network = DarknetNetwork(parse_cfg(config.read_text(encoding="utf-8"))).eval()
    if network.config.channels not in PILLOW_MODES:
        raise ConfigurationError(
            f"{config.name} has {network.config.channels} input channels",
            code="configuration.darknet_cfg",
            remedy="a network for images has 1 (grey) or 3 (RGB)",
        )
    read_weights(weights, network)
    names = class_names(data_file)
    if len(names) < network.config.heads[0].classes:
        raise ConfigurationError(
            f"{data_file.name} leads to {len(names)} class names, {config.name} has "
            f"{network.config.heads[0].classes} classes",
            code="configuration.darknet_data",
            remedy="take the names the network was trained with",
        )
    return _Detector(network.to(device), names, device)


def _device() -> torch.device:
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "").strip().startswith("-")
    forced = os.environ.get("FORCE_CPU", "").strip().lower() in {"1", "true", "yes", "on"}
    return torch.device("cuda" if torch.cuda.is_available() and not hidden and not forced else "cpu")


def _existing(path: str | os.PathLike[str], what: str) -> Path:
    absolute = Path(path).absolute()
    if not absolute.exists():
        raise ValueError(f"Invalid {what} path `{absolute}`")
    return absolute


def _read_image(path: Path, network: DarknetNetwork) -> NDArray[np.uint8]:
    """(rows, columns, channels of the network); of 16 bits the upper 8, as darknet reads them."""
    try:
        with Image.open(path) as file:
            if file.mode.startswith("I"):
                eight_bit = Image.fromarray((np.asarray(file) >> 8).clip(0, 255).astype(np.uint8))
            elif file.mode == "F":
                raise InputError(
                    f"{path.name} holds fractions, not grey values",
                    code="input.not_an_image",
                    remedy="save it with 8 or 16 bits per channel",
                )
            else:
                eight_bit = file
            pixels = np.asarray(eight_bit.convert(PILLOW_MODES[network.config.channels]))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise InputError(f"{path.name} cannot be read as an image: {error}", code="input.not_an_image") from error
    return pixels.reshape(*pixels.shape[:2], -1)


def _stretched(images: Sequence[NDArray[np.uint8]], detector: _Detector, mode: str) -> Tensor:
    """(images, channels, rows, columns) at the network's size, 0..1, on its device.

    "bilinear" is darknet's `resize_image`, which lays corner pixels on corner pixels; "nearest" is OpenCV's
    INTER_NEAREST, which rounds down.
    """
    _, height, width = detector.network.input_shape
    batch = torch.from_numpy(np.stack(images)).to(detector.device).permute(0, 3, 1, 2).float() / 255
    return F.interpolate(batch, (height, width), mode=mode, align_corners=True if mode == "bilinear" else None)


def _pixel_box(detection: Detection, rows: int, columns: int) -> PixelBox:
    return detection.cx * columns, detection.cy * rows, detection.width * columns, detection.height * rows


def _corners(detection: Detection, rows: int, columns: int) -> tuple[int, int, int, int]:
    cx, cy, width, height = _pixel_box(detection, rows, columns)
    return int(cy - height / 2), int(cx - width / 2), int(cy + height / 2), int(cx + width / 2)


def _as_rgb(image: NDArray[np.uint8]) -> Picture:
    """A copy of (rows, columns, 1 or 3) to draw into."""
    return np.repeat(image, 3 // image.shape[2], axis=2)


def _picture_paths(images: Sequence[Path]) -> list[Path]:
    """Where the pictures of performBatchDetect go: none over an image, no two images' to one place."""
    place: dict[Path, Path] = {}
    for image in images:
        path = Path.cwd() / image.name
        if any(path.exists() and path.samefile(other) for other in images):
            path = path.with_name(f"{image.stem}_detections{image.suffix}")
        if place.setdefault(path, image) != image:
            raise ValueError(f"{place[path]} and {image} would both be drawn to {path}: give them different names")
    return [next(path for path, source in place.items() if source == image) for image in images]
