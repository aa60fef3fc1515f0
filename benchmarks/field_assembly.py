"""What one would put together from the field's parts: SimpleITK, MONAI, highdicom and dcmtk around the same networks.

    python -m benchmarks.field_assembly PACKAGE_DIR DICOM_PORT FOLDER

A service with its networks loaded: for every line on its standard input, the folder of a series, it segments the
series, sends the SEG to the node on that port and answers with a line of JSON: seconds of each step, lesions found.
Networks, lung box, thresholds and the rule for lesions are ours, since they are the method; all else is what the
libraries' documentation shows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import SimpleITK as sitk  # noqa: N813  as its documentation does
import torch
from monai.inferers.inferer import SlidingWindowInferer
from numpy.typing import NDArray
from pydicom.sr.codedict import codes
from torch import Tensor
from torch.nn import functional as F

from imaging.geometry import Box, cropped
from imaging.lesions import LesionThresholds, find_lesions
from imaging.volume import CtVolume
from imaging.windows import aanet_input, unet_channel_stack
from models.aanet import AANet
from models.darknet.network import DarknetNetwork
from models.fusion import FusionSettings, fuse
from models.packages import load_network, load_package
from models.roi import RoiSettings, find_lungs

_SLICES_AT_ONCE = 4
_SMALLEST_VESSEL_PIECE_MM3 = 60.0


class Assembly:
    """Networks in fp32, eager, on all cores."""

    def __init__(self, package_dir: Path) -> None:
        package = load_package(package_dir)
        self._settings = package.settings
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        detector, aanet = load_network(package, "roi").eval(), load_network(package, "aanet").eval()
        assert isinstance(detector, DarknetNetwork)
        assert isinstance(aanet, AANet)
        self._detector, self._aanet = detector, aanet
        ensemble = package.settings["ensemble"]
        # Whose weight is 0 need not run, here as in ours.
        self._unets = {
            name: load_network(package, name).eval()
            for name, weight in zip(ensemble["members"], ensemble["weights"], strict=True)
            if weight
        }
        window = package.settings["window"]
        self._inferer = SlidingWindowInferer(
            roi_size=window["size_zyx"], sw_batch_size=1, overlap=window["overlap"], mode="gaussian"
        )

    def run(self, series: Path, dicom_port: int, folder: Path) -> dict[str, object]:
        seconds: dict[str, float] = {}
        settings = self._settings
        with _timed("read", seconds):
            names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(series))
            image = sitk.ReadImage(names)
            volume = _volume(image)
        with torch.inference_mode():
            with _timed("roi", seconds):
                box = find_lungs(self._detector, volume, RoiSettings(**settings["roi"]), lambda _: None).box
            with _timed("resample", seconds):
                working = _to_working_grid(image, box, float(settings["input"]["spacing_mm"]))
                hu = sitk.GetArrayFromImage(working)
            with _timed("unet", seconds):
                unet_logits = self._slices(hu)
            with _timed("aanet", seconds):
                answer = self._inferer(torch.from_numpy(aanet_input(hu))[None, None], self._windows)[0]
                aanet_logits, artery = torch.logit(answer[0], eps=1e-6), answer[1]
            with _timed("fuse", seconds):
                embolus = fuse(unet_logits, aanet_logits, artery, FusionSettings(**settings["fusion"]))
        with _timed("restore", seconds):
            part = cropped(volume, box)
            probability, artery_probability = (
                _to_source(values.numpy(), working, image, box) for values in (embolus, artery)
            )
        with _timed("lesions", seconds):
            thresholds = dict(settings["thresholds"])
            artery_mask = _without_small_pieces(artery_probability > thresholds.pop("artery"), part.voxel_volume_mm3)
            found = find_lesions(probability, artery_mask, part, LesionThresholds(**thresholds), min_score=None)
        with _timed("write", seconds):
            segments = np.zeros(volume.shape_zyx, dtype=np.uint8)
            segments[box.slices] = artery_mask
            segments[box.slices][found.labelmap > 0] = found.labelmap[found.labelmap > 0] + 1
            path = folder / "seg.dcm"
            _seg(names, segments, len(found.lesions)).save_as(path)
        with _timed("send", seconds):
            _send(path, dicom_port)
        return {"seconds": seconds, "lesions": len(found.lesions)}

    def _slices(self, hu: NDArray[np.int16]) -> Tensor:
        """Embolus logits (z, y, x), the members' mean by their weights."""
        ensemble = self._settings["ensemble"]
        weights = dict(zip(ensemble["members"], ensemble["weights"], strict=True))
        depth, height, width = hu.shape
        total = torch.zeros(hu.shape)
        for name, network in self._unets.items():
            multiple = network.pixel_multiple
            for start in range(0, depth, _SLICES_AT_ONCE):
                slices = range(start, min(depth, start + _SLICES_AT_ONCE))
                channels = F.pad(
                    torch.from_numpy(unet_channel_stack(hu, slices)), (0, -width % multiple, 0, -height % multiple)
                )
                answer = network(channels)
                last = answer if isinstance(answer, Tensor) else answer[-1]
                total[slices.start : slices.stop] += weights[name] * last[:, 0, :height, :width]
        return total.div(sum(weights[name] for name in self._unets))

    def _windows(self, windows: Tensor) -> Tensor:
        embolus, artery = self._aanet.forward_logits(windows)[:2]
        probabilities: Tensor = torch.sigmoid(torch.cat((embolus, artery), dim=1))
        return probabilities


def _volume(image: sitk.Image) -> CtVolume:
    if not np.allclose(image.GetDirection(), np.eye(3).ravel()):
        raise ValueError("only axial series; the benchmark's is one")
    affine = np.zeros((4, 4))
    affine[3, 3] = 1.0
    affine[[2, 1, 0], [0, 1, 2]] = image.GetSpacing()[::-1]
    affine[:3, 3] = image.GetOrigin()
    return CtVolume(sitk.GetArrayFromImage(image).astype(np.int16), affine)


def _to_working_grid(image: sitk.Image, box: Box, spacing_mm: float) -> sitk.Image:
    crop = sitk.RegionOfInterest(image, box.shape_zyx[::-1], box.start_zyx[::-1])
    size = [max(1, round(n * step / spacing_mm)) for n, step in zip(crop.GetSize(), crop.GetSpacing(), strict=True)]
    # The grids' outer faces lie on each other.
    origin = [first + (spacing_mm - step) / 2 for first, step in zip(crop.GetOrigin(), crop.GetSpacing(), strict=True)]
    spacing = [spacing_mm] * 3
    return sitk.Resample(
        crop, size, sitk.Transform(), sitk.sitkLinear, origin, spacing, crop.GetDirection(), -1024, sitk.sitkInt16
    )


def _to_source(values: NDArray[np.float32], working: sitk.Image, image: sitk.Image, box: Box) -> NDArray[np.float32]:
    on_grid = sitk.GetImageFromArray(values)
    on_grid.CopyInformation(working)
    crop = sitk.RegionOfInterest(image, box.shape_zyx[::-1], box.start_zyx[::-1])
    restored: NDArray[np.float32] = sitk.GetArrayFromImage(
        sitk.Resample(on_grid, crop, sitk.Transform(), sitk.sitkLinear, 0.0, sitk.sitkFloat32)
    )
    return restored


def _without_small_pieces(mask: NDArray[np.bool_], voxel_volume_mm3: float) -> NDArray[np.bool_]:
    smallest = max(1, round(_SMALLEST_VESSEL_PIECE_MM3 / voxel_volume_mm3))
    pieces = sitk.ConnectedComponent(sitk.GetImageFromArray(mask.astype(np.uint8)), True)
    return np.asarray(sitk.GetArrayFromImage(sitk.RelabelComponent(pieces, minimumObjectSize=smallest)) > 0)


def _seg(names: tuple[str, ...], segments: NDArray[np.uint8], lesions: int) -> hd.seg.Segmentation:
    algorithm = hd.AlgorithmIdentificationSequence(
        name="assembly", version="1", family=codes.DCM.ArtificialIntelligence
    )
    named = ["Pulmonary artery", *(f"Embolus {number}" for number in range(1, lesions + 1))]
    return hd.seg.Segmentation(
        source_images=[pydicom.dcmread(name) for name in names],
        pixel_array=segments,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[
            hd.seg.SegmentDescription(
                segment_number=number,
                segment_label=label,
                segmented_property_category=codes.SCT.AnatomicalStructure,
                segmented_property_type=codes.SCT.PulmonaryArtery,
                algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
                algorithm_identification=algorithm,
            )
            for number, label in enumerate(named, 1)
        ],
        series_instance_uid=hd.UID(),
        series_number=100,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="assembly",
        manufacturer_model_name="assembly",
        software_versions="1",
        device_serial_number="1",
    )


def _send(path: Path, dicom_port: int) -> None:
    subprocess.run(
        ["storescu", "-R", "-aet", "ASSEMBLY", "-aec", "ORTHANC", "127.0.0.1", str(dicom_port), str(path)],
        check=True,
        capture_output=True,
        env=os.environ | {"TCP_NODELAY": "1"},
    )


@contextmanager
def _timed(step: str, seconds: dict[str, float]) -> Iterator[None]:
    began = time.perf_counter()
    yield
    seconds[step] = time.perf_counter() - began


def main() -> None:
    package_dir, dicom_port, folder = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    assembly = Assembly(package_dir)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(assembly.run(Path(line.strip()), dicom_port, folder)), flush=True)


if __name__ == "__main__":
    main()
