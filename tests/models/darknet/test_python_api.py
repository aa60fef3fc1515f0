"""darknet's Python API: its arguments, its checks and its answers, with a network whose boxes are known."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from darknet_python import performBatchDetect, performDetect
from imaging.errors import ConfigurationError, InputError
from models.darknet import python_api
from models.darknet.config import parse_cfg
from models.darknet.network import DarknetNetwork
from models.darknet.weights import write_weights
from models.packages import default_package_directory
from tests.models.darknet.made_networks import drawn_chest

# Cells of 8 x 8 pixels; the network below says what lies in a cell from the mean of its pixels.
CFG = """\
[net]
width=32
height=32
channels={channels}
[convolutional]
filters=7
size=8
stride=8
activation=linear
[yolo]
anchors = 8,16
classes=2
"""
NAMES = ["clot", "node"]
GREEN, RED = (0, 255, 0), (255, 0, 0)


class Files:
    """A folder with cfg, weights, .data and .names, and what is passed to the API to use them."""

    def __init__(self, folder: Path, channels: int = 3) -> None:
        self.folder = folder
        (folder / "net.cfg").write_text(CFG.format(channels=channels))
        (folder / "obj.names").write_text("\n".join(NAMES) + "\n")
        (folder / "obj.data").write_text("classes = 2\nnames = obj.names\nbackup = backup/\n")
        network = DarknetNetwork(parse_cfg(CFG.format(channels=channels)))
        layer = network.convolutions["0"].conv
        assert isinstance(layer, nn.Conv2d)
        assert layer.bias is not None
        # A black cell is empty. White: objectness sigmoid(4), class 0 sigmoid(2), class 1 sigmoid(-2), centred.
        empty = torch.tensor([0.0, 0, 0, 0, -20, -20, -20])
        white = torch.tensor([0.0, 0, 0, 0, 4, 2, -2])
        with torch.no_grad():
            layer.bias.copy_(empty)
            layer.weight.copy_(((white - empty) / (64 * channels)).view(7, 1, 1, 1).expand_as(layer.weight))
        write_weights(folder / "net.weights", network)

    @property
    def arguments(self) -> dict[str, Path]:
        return {
            "configPath": self.folder / "net.cfg",
            "weightPath": self.folder / "net.weights",
            "metaPath": self.folder / "obj.data",
        }

    def image(self, name: str, *cells: tuple[int, int], scale: int = 2) -> Path:
        """A black image of 32 x `scale` pixels a side with white cells (row, column)."""
        pixels = np.zeros((32 * scale, 32 * scale, 3), np.uint8)
        for row, column in cells:
            pixels[8 * scale * row : 8 * scale * (row + 1), 8 * scale * column : 8 * scale * (column + 1)] = 255
        Image.fromarray(pixels).save(self.folder / name)
        return self.folder / name


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    """The working directory is another one than that of the files."""
    (tmp_path / "work").mkdir()
    (tmp_path / "files").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("FORCE_CPU", "1")
    return Files(tmp_path / "files")


def sigmoid(x: float) -> float:
    return float(torch.sigmoid(torch.tensor(x)))


def test_the_answer_is_name_confidence_and_box_in_pixels(files: Files) -> None:
    image = files.image("one.png", (1, 2), scale=1)
    (detection,) = performDetect(image, showImage=False, **files.arguments)
    name, confidence, box = detection
    assert name == "clot"
    assert confidence == pytest.approx(sigmoid(4) * sigmoid(2), abs=1e-5)
    assert box == pytest.approx((20, 12, 8, 16), abs=1e-4)


def test_boxes_are_in_pixels_of_the_image_not_of_the_network(files: Files) -> None:
    wide = Image.open(files.image("one.png", (1, 2), scale=1)).resize((320, 64), Image.Resampling.NEAREST)
    wide.save(files.folder / "wide.png")
    ((_, _, box),) = performDetect(str(files.folder / "wide.png"), showImage=False, **files.arguments)
    assert box == pytest.approx((200, 24, 80, 32), abs=1e-3)


def test_the_surest_comes_first_and_each_class_counts_for_itself(files: Files) -> None:
    grey = np.zeros((32, 32, 3), np.uint8)
    grey[8:16, 16:24] = 250
    grey[24:32, 0:8] = 255
    Image.fromarray(grey).save(files.folder / "two.png")
    found = performDetect(files.folder / "two.png", thresh=0.05, showImage=False, **files.arguments)
    assert [name for name, _, _ in found] == ["clot", "clot", "node", "node"]
    assert [confidence for _, confidence, _ in found] == sorted((c for _, c, _ in found), reverse=True)
    assert found[0][2][:2] == pytest.approx((4, 28), abs=1e-4)


def test_the_picture_comes_with_its_caption_and_is_shown(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Image.Image] = []
    monkeypatch.setattr(Image.Image, "show", lambda image: shown.append(image))
    image = files.image("two.png", (1, 2), (2, 0), scale=4)
    answer = performDetect(imagePath=image, **files.arguments)
    assert isinstance(answer, dict)
    assert answer["detections"] == performDetect(image, showImage=False, **files.arguments)
    assert answer["caption"] == "clot: 86%\n<br/>clot: 86%"
    assert answer["image"].shape == (128, 128, 3)
    assert answer["image"].dtype == np.uint8
    (picture,) = shown
    np.testing.assert_array_equal(np.asarray(picture), answer["image"])


def test_the_border_is_three_pixels_wide_and_coloured_by_confidence(files: Files) -> None:
    image = files.image("one.png", (1, 2), scale=4)
    answer = performDetect(image, makeImageOnly=True, **files.arguments)
    assert isinstance(answer, dict)
    before = np.asarray(Image.open(image))
    ((_, confidence, (cx, cy, width, height)),) = answer["detections"]
    left, right, middle = int(cx - width / 2), int(cx - width / 2) + int(width), int(cy)
    changed = np.flatnonzero((answer["image"][middle] != before[middle]).any(axis=1))
    assert changed.tolist() == [left - 1, left, left + 1, right - 1, right, right + 1]
    colour = np.array([int(255 * (1 - confidence**2)), int(255 * confidence**2), 0])
    expected = (0.8 * colour + 0.2 * before[middle, left - 1]).astype(np.uint8)
    np.testing.assert_array_equal(answer["image"][middle, left - 1], expected)
    top = int(cy - height / 2)
    assert (answer["image"][top - 2] == before[top - 2]).all()


def test_a_border_beyond_the_image_is_cut_off(files: Files) -> None:
    answer = performDetect(files.image("corner.png", (0, 0), (3, 3)), makeImageOnly=True, **files.arguments)
    assert isinstance(answer, dict)
    assert len(answer["detections"]) == 2
    assert answer["image"].shape == (64, 64, 3)


def test_make_image_only_shows_nothing(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "show", lambda image: pytest.fail("was shown"))
    performDetect(files.image("one.png", (1, 2)), makeImageOnly=True, **files.arguments)


def test_init_only_loads_the_network_once_and_asks_for_no_image(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    assert performDetect("no-such.jpg", initOnly=True, **files.arguments) is None
    monkeypatch.setattr(python_api, "read_weights", lambda *_: pytest.fail("was loaded again"))
    assert performDetect(files.image("one.png", (1, 2)), showImage=False, **files.arguments)


def test_weights_that_were_written_anew_are_loaded_anew(files: Files) -> None:
    image = files.image("one.png", (1, 2))
    assert performDetect(image, showImage=False, **files.arguments)
    network = DarknetNetwork(parse_cfg(CFG.format(channels=3)))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(-1)
    weights = files.folder / "net.weights"
    before = weights.stat().st_mtime_ns
    write_weights(weights, network)
    os.utime(weights, ns=(before + 1, before + 1))
    assert performDetect(image, showImage=False, **files.arguments) == []


@pytest.mark.parametrize("thresh", [0, 1, -0.1, 25])
def test_the_threshold_must_lie_between_0_and_1(files: Files, thresh: float) -> None:
    for call in (performDetect, performBatchDetect):
        with pytest.raises(AssertionError, match=f"thresh is {thresh}"):
            call(thresh=thresh, **files.arguments)


@pytest.mark.parametrize("argument", ["configPath", "weightPath", "metaPath"])
def test_a_path_that_leads_nowhere_is_named(files: Files, argument: str) -> None:
    arguments = files.arguments | {argument: Path("nowhere")}
    for call in (performDetect, performBatchDetect):
        with pytest.raises(ValueError, match=r"Invalid .* path `.*/work/nowhere`"):
            call(**arguments)


def test_a_missing_image_is_named(files: Files) -> None:
    with pytest.raises(ValueError, match=r"Invalid image path `.*/dog\.jpg`"):
        performDetect("dog.jpg", **files.arguments)
    with pytest.raises(ValueError, match=r"Invalid image path `.*/data/person\.jpg`"):
        performBatchDetect(**files.arguments)


def test_a_file_that_is_no_image_is_refused(files: Files) -> None:
    (files.folder / "text.jpg").write_text("no image")
    with pytest.raises(InputError, match=r"text\.jpg cannot be read as an image"):
        performDetect(files.folder / "text.jpg", **files.arguments)


def test_names_are_looked_up_from_the_working_directory_first(files: Files) -> None:
    image = files.image("one.png", (1, 2))
    ((name, _, _),) = performDetect(image, showImage=False, **files.arguments)
    assert name == "clot"
    Path("obj.names").write_text("embolus\nlymph node\n")
    os.utime(files.folder / "obj.data", ns=(1, 1))
    ((name, _, _),) = performDetect(image, showImage=False, **files.arguments)
    assert name == "embolus"


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ("classes = 2\n", "has no names= line"),
        ("names = other.names\n", r"names=other\.names, and there is no such file"),
        ("names = short.names\n", "leads to 1 class names, net.cfg has 2 classes"),
    ],
)
def test_a_data_file_without_the_names_is_refused(files: Files, data: str, complaint: str) -> None:
    (files.folder / "short.names").write_text("clot\n")
    (files.folder / "obj.data").write_text(data)
    with pytest.raises(ConfigurationError, match=complaint):
        performDetect(initOnly=True, **files.arguments)


def test_a_grey_network_reads_grey_images_of_8_and_16_bits(files: Files, tmp_path: Path) -> None:
    grey = Files(tmp_path / "files", channels=1)
    eight = grey.image("eight.png", (1, 2))
    pixels = np.asarray(Image.open(eight).convert("L")).astype(np.uint16)
    Image.fromarray(pixels * 256 + 255 * (pixels > 0).astype(np.uint16)).save(grey.folder / "sixteen.png")
    of_eight = performDetect(eight, showImage=False, **grey.arguments)
    assert of_eight
    assert performDetect(grey.folder / "sixteen.png", showImage=False, **grey.arguments) == of_eight


def test_images_are_stretched_as_darknet_does_it(files: Files) -> None:
    """darknet's resize_image: sx = column (w - 1) / (network w - 1), then between the two pixels beside it."""
    detector = python_api._detector(0.5, *files.arguments.values())
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    ours = python_api._stretched([image], detector, "bilinear").numpy()[0]
    for row, column in ((0, 0), (31, 31), (10, 3), (17, 30)):
        y, x = row * 4 / 31, column * 6 / 31
        top, left = min(int(y), 3), min(int(x), 5)
        dy, dx = y - top, x - left
        corners = image[top : top + 2, left : left + 2].astype(float) / 255
        expected = (
            (1 - dy) * (1 - dx) * corners[0, 0]
            + (1 - dy) * dx * corners[0, 1]
            + dy * (1 - dx) * corners[1, 0]
            + dy * dx * corners[1, 1]
        )
        np.testing.assert_allclose(ours[:, row, column], expected, atol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (50, 37), (31, 200)])
def test_batches_are_stretched_as_inter_nearest_does_it(files: Files, size: tuple[int, int]) -> None:
    detector = python_api._detector(0.5, *files.arguments.values())
    image = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    ours = python_api._stretched([image], detector, "nearest").numpy()[0]
    theirs = cv2.resize(image, (32, 32), interpolation=cv2.INTER_NEAREST).transpose(2, 0, 1) / np.float32(255)
    np.testing.assert_array_equal(ours, theirs)


def test_a_batch_finds_what_single_calls_find(files: Files) -> None:
    """At the network's own size, where nothing is resized."""
    places = [((1, 2),), (), ((0, 0), (3, 3)), ((2, 1),)]
    images = [files.image(f"{index}.png", *cells, scale=1) for index, cells in enumerate(places)]
    boxes, scores, classes = performBatchDetect(img_list=images, batch_size=3, **files.arguments)
    assert [len(found) for found in boxes] == [1, 0, 2, 1]
    for image, found_boxes, found_scores, found_classes in zip(images, boxes, scores, classes, strict=True):
        single = performDetect(image, showImage=False, **files.arguments)
        assert isinstance(single, list)
        assert [NAMES[index] for index in found_classes] == [name for name, _, _ in single]
        assert found_scores == pytest.approx([confidence for _, confidence, _ in single], abs=1e-6)
        corners = [
            (int(cy - h / 2), int(cx - w / 2), int(cy + h / 2), int(cx + w / 2)) for _, _, (cx, cy, w, h) in single
        ]
        assert found_boxes == corners
        assert all(type(value) is int for box in found_boxes for value in box)


def test_boxes_of_any_class_suppress_each_other_by_objectness(files: Files) -> None:
    # Boxes 8 wide and 16 high in cells above one another overlap by a third.
    image = files.image("column.png", (1, 2), (2, 2), scale=1)
    assert len(performBatchDetect([image], nms=0.45, **files.arguments)[0][0]) == 2
    assert len(performBatchDetect([image], nms=0.3, **files.arguments)[0][0]) == 1
    assert len(performBatchDetect([image], nms=0, **files.arguments)[0][0]) == 2


def test_batch_pictures_are_written_under_the_images_names(files: Files) -> None:
    image = files.image("one.png", (1, 2), scale=4)
    (((top, left, bottom, right),),), ((score,),), _ = performBatchDetect([image], **files.arguments)
    before, written = np.asarray(Image.open(image)), np.asarray(Image.open("one.png"))
    changed = np.flatnonzero((written[(top + bottom) // 2] != before[(top + bottom) // 2]).any(axis=1))
    assert changed.tolist() == [left, left + 1, right - 1, right]
    assert written[top, left].tolist() == [int(255 * (1 - score**2)), int(255 * score**2), 0]


def test_no_image_is_replaced_by_its_picture(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    image = files.image("one.png", (1, 2))
    content = image.read_bytes()
    monkeypatch.chdir(files.folder)
    performBatchDetect(["one.png"], **files.arguments)
    assert image.read_bytes() == content
    assert Path("one_detections.png").is_file()


def test_images_that_would_share_a_picture_are_refused_and_copies_are_not(files: Files) -> None:
    image = files.image("one.png", (1, 2))
    assert len(performBatchDetect([image, image, image], **files.arguments)[0]) == 3
    (files.folder / "more").mkdir()
    other = image.rename(files.folder / "more/one.png")
    files.image("one.png", (1, 2))
    with pytest.raises(ValueError, match="would both be drawn to"):
        performBatchDetect([image, other], **files.arguments)


def test_images_of_different_sizes_are_refused(files: Files) -> None:
    images = [files.image("small.png", scale=1), files.image("large.png", scale=2)]
    with pytest.raises(ValueError, match=r"different sizes .*\(32, 32\), \(64, 64\)"):
        performBatchDetect(images, **files.arguments)


@pytest.mark.parametrize(
    ("name", "value", "device"),
    [
        ("FORCE_CPU", "true", "cpu"),
        ("CUDA_VISIBLE_DEVICES", "-1", "cpu"),
        ("FORCE_CPU", "0", "cuda"),
        ("CUDA_VISIBLE_DEVICES", "0", "cuda"),
    ],
)
def test_a_gpu_is_used_unless_the_environment_forbids_it(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, device: str
) -> None:
    monkeypatch.delenv("FORCE_CPU", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert python_api._device().type == device


def test_the_shipped_lung_network_finds_the_lungs(files: Files) -> None:
    package = default_package_directory()
    (files.folder / "lung.names").write_text("lung\n")
    (files.folder / "lung.data").write_text("classes=1\nnames=lung.names\n")
    Image.fromarray(drawn_chest()).save(files.folder / "chest.png")
    found = performDetect(
        files.folder / "chest.png",
        configPath=package / "lung-roi.cfg",
        weightPath=package / "lung-roi.weights",
        metaPath=files.folder / "lung.data",
        showImage=False,
    )
    assert isinstance(found, list)
    name, confidence, (cx, cy, width, height) = found[0]
    assert name == "lung"
    assert confidence > 0.5
    assert (cx, cy) == pytest.approx((96, 97.5), abs=10)
    assert width > height > 70
