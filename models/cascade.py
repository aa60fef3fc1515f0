"""The cascade: lung box -> 2D UNet ensemble -> AANet in 3D -> fusion -> lesions.

What a package's `package.toml` says of it (see `models/packages.py` for the rest):

    [networks.roi]             a darknet detector of the lungs
    [networks.<name>]          one or more 2D networks named under [ensemble]
    [networks.aanet]           embolus and artery in 3D
    [input]       spacing_mm
    [roi]         every_mm, min_confidence, margin_mm
    [ensemble]    members = ["unet3tiny", "attention_unet"], weights (optional, one for each member)
    [window]      size_zyx, overlap
    [vessel_window] size_zyx, overlap; of vessel mode (optional)
    [fusion]      unet_weight, aanet_weight, bias, gate_reach_voxels, gate_open_at
    [second_pass] spacing_mm, from_probability, smallest_mm3, margin_mm, share, most (optional)
    [thresholds]  voxel, score, min_volume_ml, artery
    [suitability] see imaging/suitability.py
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F

from imaging.components import drop_small_pieces
from imaging.errors import EmbolensError, OutOfMemory, Reason
from imaging.findings import Findings, Outcome
from imaging.geometry import Box, WorkingGrid, cropped, to_canonical
from imaging.lesions import LesionThresholds, find_lesions
from imaging.motion import largest_step_mm
from imaging.result import SegmentationResult
from imaging.suitability import SuitabilityLimits, check_contrast, check_coverage, check_grid, check_motion
from imaging.vessel_tree import vessel_tree
from imaging.volume import CtVolume, Mask, Probability
from imaging.windows import UNET_CHANNELS, aanet_input, unet_channel_stack
from models.aanet import AANet, EmbolusAndArtery
from models.cascade_options import CascadeOptions, Ensemble, Mode
from models.compiled_network import CompiledNetwork, InferenceBackend
from models.darknet.network import DarknetNetwork
from models.fusion import FusionSettings, ensemble_logits, fuse
from models.out_of_memory import memory_running_out
from models.packages import ModelPackage, default_package_directory, load_network, load_package
from models.roi import LungRegion, RoiSettings, find_lungs
from models.second_pass import SecondPassSettings, looked_at_again
from models.sliding_window import sliding_window
from models.unet_blocks import LastOfDeepSupervision, SliceNetwork

log = logging.getLogger(__name__)

OnProgress = Callable[[str, float], None]

_SLICES_AT_ONCE = 4
_SMALLEST_VESSEL_PIECE_MM3 = 60.0
_LUNG_HU, _VESSEL_HU = -500, 120
_SMALLEST_WINDOW = 64  # in smaller ones the network sees too little: emboli lose a fifth of their voxels
_WORTHWHILE_SHARE = 0.002  # of a window's voxels that must be lung, and vessel, for the window to be looked at
_VESSEL_WINDOW = {"size_zyx": [64, 64, 64], "overlap": 0.25}


def _ignore_progress(stage: str, fraction: float) -> None:
    """Nobody asked."""


def _unheard(fraction: float) -> None:
    """A part of a step that reports for itself."""


@dataclass(frozen=True, slots=True, eq=False)
class _Scan:
    """One scan on its way through the cascade; `hu` on `grid`, which lies over the region's box."""

    canonical: CtVolume
    region: LungRegion
    grid: WorkingGrid
    hu: NDArray[np.int16]
    warnings: tuple[Reason, ...]


class Cascade:
    """The networks of one package, loaded once, ready for any number of volumes. Not to be shared between threads."""

    def __init__(
        self,
        package: ModelPackage,
        device: torch.device,
        options: CascadeOptions | None = None,
        backend: InferenceBackend = InferenceBackend.AUTO,
    ) -> None:
        self.package = package
        self.device = device
        self._backend = backend
        self.options = options or CascadeOptions()
        settings = package.settings
        self._spacing_mm = float(settings["input"]["spacing_mm"])
        self._roi_settings = RoiSettings(**settings["roi"])
        self._fusion_settings = FusionSettings(**settings["fusion"])
        thresholds = dict(settings["thresholds"])
        self._artery_threshold = float(thresholds.pop("artery"))
        self._thresholds = LesionThresholds(**thresholds)
        vessel_mode = self.options.mode is Mode.VESSEL
        window = settings.get("vessel_window", _VESSEL_WINDOW) if vessel_mode else settings["window"]
        self._window_zyx = tuple(window["size_zyx"])
        self._fitting_window_zyx = self._window_zyx  # of the scan in hand
        self._overlap = float(window["overlap"])
        self._limits = SuitabilityLimits.from_mapping(settings.get("suitability", {}))
        self._second_pass = _second_pass(self.options, settings)
        detector = load_network(package, "roi")
        assert isinstance(detector, DarknetNetwork)
        self._detector = detector.to(device).eval()
        members = settings["ensemble"]["members"]
        weights = dict(zip(members, settings["ensemble"].get("weights", [1.0] * len(members)), strict=True))
        chosen = self.options.members(members)
        if self.options.unets is None and self.options.ensemble is Ensemble.LEARNT:
            chosen = tuple(name for name in chosen if weights[name])  # whom the fit left no say need not run
        unets = [_slice_network(package, name) for name in chosen]
        self._pixel_multiple = max((network.pixel_multiple for network in unets), default=1)
        self._unets = [self._compiled(LastOfDeepSupervision(network), (1, UNET_CHANNELS, 32, 32)) for network in unets]
        shares = [float(weights[name]) for name in chosen]
        self._unet_weights = shares if any(shares) else [1.0] * len(shares)
        self._aanet: CompiledNetwork | None = None
        if self.options.aanet:
            aanet = load_network(package, "aanet")
            assert isinstance(aanet, AANet)
            self._aanet = self._compiled(EmbolusAndArtery(aanet), (1, 1, 32, 32, 32))

    @classmethod
    def load(
        cls,
        package_dir: Path | None = None,
        device: str = "auto",
        threads: int = 0,
        options: CascadeOptions | None = None,
        backend: InferenceBackend = InferenceBackend.AUTO,
    ) -> Cascade:
        """Verify and load a package (None: the shipped one).

        Args:
            device: "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:N".
            threads: CPU threads of this process; 0: all cores.
            options: which parts run; None: all.
            backend: who runs the segmenting networks.

        Raises:
            ConfigurationError: a file of the package is missing or was changed, the options fit no package, or the
                backend cannot run here.
        """
        torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(load_package(package_dir or default_package_directory()), torch.device(device), options, backend)

    def segment(
        self, volume: CtVolume, *, on_progress: OnProgress | None = None, min_score: float | None = None
    ) -> SegmentationResult:
        """Find the emboli of one scan.

        Args:
            volume: any orientation, any spacing within the package's limits.
            on_progress: called with (stage, fraction of that stage); may raise to stop the work.
            min_score: list candidates down to this score too; None: the package's threshold.

        Raises:
            NotAnalysable: nothing may be said about emboli in this scan.
            OutOfMemory: not even the smallest windows fit (code ``out_of_gpu_memory`` on a GPU), or the scan does not.
        """
        self._fitting_window_zyx = self._window_zyx
        with memory_running_out(), torch.inference_mode():
            result = self._segment(volume, on_progress or _ignore_progress, min_score)
        return result.with_reasons(self._smaller_windows())

    def _segment(self, volume: CtVolume, report: OnProgress, min_score: float | None) -> SegmentationResult:
        seconds: dict[str, float] = {}
        canonical, order = to_canonical(volume)
        check_grid(canonical, self._limits)
        with _stage("roi", seconds, report) as progress:
            region = self._region(canonical, progress)
            warnings = check_coverage(region.lung_extent_zyx_mm, self._limits)
            warnings += check_motion(largest_step_mm(canonical), self._limits)
            grid = WorkingGrid.over(canonical, region.box, self._spacing_mm)
            scan = _Scan(canonical, region, grid, grid.resample(canonical.hu), warnings)
        with _stage("unet", seconds, report) as progress:
            unet_logits = self.unet_logits(self.slice_logits(scan.hu, progress)) if self._unets else None
        with _stage("aanet", seconds, report) as progress:
            aanet_logits, artery_logits = self.volume_logits(scan.hu, progress) if self._aanet else (None, None)
        with _stage("fuse", seconds, report) as progress:
            artery = None if artery_logits is None else torch.sigmoid(artery_logits)
            embolus = self._fused(unet_logits, aanet_logits, artery)
            labelmap, artery_mask, lesion_probability, findings = self._lesions(
                scan, embolus, None if artery is None else artery.cpu().numpy(), min_score, progress
            )
        return SegmentationResult(
            embolus_labelmap=np.ascontiguousarray(order.undo(labelmap)),
            artery=np.ascontiguousarray(order.undo(artery_mask)),
            findings=findings,
            stage_seconds=seconds,
            lesion_probability=np.ascontiguousarray(order.undo(lesion_probability)),
        )

    def _region(self, canonical: CtVolume, progress: Callable[[float], None]) -> LungRegion:
        if self.options.lung_roi:
            return find_lungs(self._detector, canonical, self._roi_settings, progress)
        z, y, x = (count * step for count, step in zip(canonical.shape_zyx, canonical.spacing_zyx_mm, strict=True))
        return LungRegion(Box((0, 0, 0), canonical.shape_zyx), (z, y, x))

    def unet_logits(self, members: Sequence[Tensor]) -> Tensor:
        """What `slice_logits` gives, as one (z, y, x)."""
        return ensemble_logits(members, self._unet_weights, self.options.ensemble)

    def slice_logits(self, hu: NDArray[np.int16], progress: Callable[[float], None]) -> list[Tensor]:
        """Embolus logits (z, y, x) of each 2D network."""
        depth, height, width = hu.shape
        padding = (0, -width % self._pixel_multiple, 0, -height % self._pixel_multiple)
        logits = [torch.empty(hu.shape, device=self.device) for _ in self._unets]
        start, at_once = 0, _SLICES_AT_ONCE
        while start < depth:
            slices = range(start, min(depth, start + at_once))
            try:
                with memory_running_out():
                    channels = F.pad(torch.from_numpy(unet_channel_stack(hu, slices)).to(self.device), padding)
                    for network, out in zip(self._unets, logits, strict=True):
                        out[slices.start : slices.stop] = network(channels)[:, 0, :height, :width]
            except OutOfMemory:
                if len(slices) == 1:
                    raise
                at_once = len(slices) // 2
                continue
            start = slices.stop
            progress(start / depth)
        return logits

    def volume_logits(
        self, hu: NDArray[np.int16], progress: Callable[[float], None], *, everywhere: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Embolus and artery logits (z, y, x) of AANet.

        Windows with nothing to look at stay at "surely not", unless `everywhere` is looked. Where memory runs out the
        windows are made smaller, for the rest of this scan.
        """
        aanet = self._aanet
        assert aanet is not None, "asked for only where it runs"

        def predict(windows: Tensor) -> Tensor:
            # Probabilities blend, logits do not: one window's certainty must not outshout its neighbour.
            return aanet(windows).sigmoid_()

        keep = None if everywhere else self._worth_looking(hu)
        while True:
            try:
                blended = sliding_window(
                    torch.from_numpy(aanet_input(hu)).to(self.device),
                    predict,
                    window_zyx=self._fitting_window_zyx,
                    overlap=self._overlap,
                    keep=keep,
                    batch=aanet.at_once,
                    on_progress=progress,
                )
            except OutOfMemory:
                # Not larger than the scan, else smaller windows could be the same ones.
                window = [min(one, 16 * -(-n // 16)) for one, n in zip(self._fitting_window_zyx, hu.shape, strict=True)]
                if max(window) <= _SMALLEST_WINDOW:
                    raise
                longest = window.index(max(window))
                window[longest] = max(_SMALLEST_WINDOW, 16 * round(window[longest] / 32))
                self._fitting_window_zyx = tuple(window)
                log.warning("not enough memory; AANet looks in windows of %s voxels", self._fitting_window_zyx)
            else:
                logits = torch.logit(blended, eps=1e-6)
                return logits[0], logits[1]

    def _smaller_windows(self) -> tuple[Reason, ...]:
        """A network sees less around a voxel in smaller windows: whoever reads the result has to know."""
        if self._fitting_window_zyx == self._window_zyx:
            return ()
        used, meant = (" x ".join(map(str, one)) for one in (self._fitting_window_zyx, self._window_zyx))
        text = f"not enough memory: the 3D network looked in windows of {used} voxels instead of {meant}"
        return (Reason("compute.smaller_windows", text),)

    def _finer_look(self, hu: NDArray[np.int16]) -> Probability:
        """The second pass's embolus probability of a block: AANet alone, gated by the artery it finds there."""
        aanet_logits, artery_logits = self.volume_logits(hu, _unheard, everywhere=True)
        return self._fused(None, aanet_logits, torch.sigmoid(artery_logits))

    def _fused(
        self, unet_logits: Tensor | None, aanet_logits: Tensor | None, artery_probability: Tensor | None
    ) -> Probability:
        embolus = fuse(unet_logits, aanet_logits, artery_probability, self._fusion_settings)
        if not bool(embolus.sum().isfinite()):  # would compare as "below the threshold", that is as no embolus
            raise EmbolensError("the networks gave values that are not numbers", code="cascade.not_finite")
        return np.asarray(embolus.cpu().numpy())

    def _worth_looking(self, hu: NDArray[np.int16]) -> Callable[[tuple[slice, slice, slice]], bool]:
        """Which windows AANet looks into: where lung and vessel are, in vessel mode where a vessel of the lungs is."""
        if self.options.mode is Mode.VESSEL:
            tree = vessel_tree(hu, self._spacing_mm)
            return lambda window: bool(tree[window].mean() > _WORTHWHILE_SHARE)

        def lung_and_vessel(window: tuple[slice, slice, slice]) -> bool:
            inside = hu[window]
            least = _WORTHWHILE_SHARE * inside.size
            return bool((inside < _LUNG_HU).sum() > least and (inside > _VESSEL_HU).sum() > least)

        return lung_and_vessel

    def _lesions(
        self,
        scan: _Scan,
        embolus: Probability,
        artery: Probability | None,
        min_score: float | None,
        progress: Callable[[float], None],
    ) -> tuple[NDArray[np.uint16], Mask, NDArray[np.uint8], Findings]:
        canonical, region = scan.canonical, scan.region
        part = cropped(canonical, region.box)
        with ThreadPoolExecutor(1, "artery") as beside:
            of_artery = beside.submit(self._artery, scan, artery)
            artery_hu, warnings = self._contrast(scan, embolus, artery)
            probability = scan.grid.restore(embolus)
            artery_mask = of_artery.result()
        if self._second_pass is not None:
            probability = looked_at_again(probability, part, self._finer_look, self._second_pass, progress)
        found = find_lesions(probability, artery_mask[region.box.slices], part, self._thresholds, min_score=min_score)

        labelmap = np.zeros(canonical.shape_zyx, dtype=np.uint16)
        lesion_probability = np.zeros(canonical.shape_zyx, dtype=np.uint8)
        # Ids run from the best score down. Candidates below the threshold say nothing about the artery either.
        emboli = sum(lesion.score >= self._thresholds.score for lesion in found.lesions)
        of_lesions = np.unravel_index(np.flatnonzero(found.labelmap > 0), found.labelmap.shape)
        ids = found.labelmap[of_lesions]
        labelmap[region.box.slices][of_lesions] = ids
        lesion_probability[region.box.slices][of_lesions] = np.rint(255 * probability[of_lesions])
        artery_mask[region.box.slices][of_lesions] |= ids <= emboli
        reported = found.scan_probability >= self._thresholds.score
        findings = Findings(
            outcome=Outcome.EMBOLUS_FOUND if reported else Outcome.NO_EMBOLUS,
            reasons=scan.warnings + warnings,
            scan_probability=found.scan_probability,
            lesions=found.lesions,
            score_threshold=self._thresholds.score,
            provenance={
                "package": {
                    "name": self.package.name,
                    "version": self.package.version,
                    "sha256": self.package.sha256,
                },
                "thresholds": dict(self.package.settings["thresholds"]),
                "mode": self.options.mode.value,
                "min_score": min_score,
                "artery_hu": artery_hu,
                "lung_height_mm": round(region.lung_extent_zyx_mm[0], 1),
            },
        )
        return labelmap, artery_mask, lesion_probability, findings

    def _contrast(
        self, scan: _Scan, embolus: Probability, artery: Probability | None
    ) -> tuple[float | None, tuple[Reason, ...]]:
        """The median HU of the artery's lumen, and what to warn of.

        HU are taken a voxel away from the wall, where there is such a place: most of a tree is branches so thin that
        they share their voxels with lung.
        """
        if artery is None:
            return None, (Reason("contrast.not_measured", "no artery was looked for, so its contrast is not known"),)
        lumen = (artery > self._artery_threshold) & (embolus < self._thresholds.voxel / 2)
        lumen_hu = np.empty(0, dtype=np.int16)
        if (around := Box.around(lumen)) is not None:
            core = ndimage.binary_erosion(lumen[around.slices])
            lumen_hu = scan.hu[around.slices][core if core.any() else lumen[around.slices]]
        artery_ml = np.count_nonzero(lumen) * self._spacing_mm**3 / 1000.0
        artery_hu = round(float(np.median(lumen_hu)), 1) if lumen_hu.size else 0.0
        return artery_hu, check_contrast(artery_ml, artery_hu, self._limits)

    def _artery(self, scan: _Scan, artery: Probability | None) -> Mask:
        """On all voxels of the scan."""
        whole = np.zeros(scan.canonical.shape_zyx, dtype=bool)
        if artery is not None:
            mask = scan.grid.restore_above(artery, self._artery_threshold)
            drop_small_pieces(mask, max(1, round(_SMALLEST_VESSEL_PIECE_MM3 / scan.canonical.voxel_volume_mm3)))
            whole[scan.region.box.slices] = mask
        return whole

    def _compiled(self, network: nn.Module, example_shape: Sequence[int]) -> CompiledNetwork:
        return CompiledNetwork(network, example_shape, self.device, self._backend)


def _slice_network(package: ModelPackage, name: str) -> SliceNetwork:
    network = load_network(package, name)
    assert isinstance(network, SliceNetwork)
    return network


def _second_pass(options: CascadeOptions, settings: Mapping[str, Mapping[str, Any]]) -> SecondPassSettings | None:
    if not options.aanet or not options.second_pass:
        return None
    if isinstance(options.second_pass, SecondPassSettings):
        return options.second_pass
    return SecondPassSettings(**settings["second_pass"]) if "second_pass" in settings else None


@contextmanager
def _stage(name: str, seconds: dict[str, float], report: OnProgress) -> Iterator[Callable[[float], None]]:
    report(name, 0.0)
    started = time.perf_counter()
    yield lambda fraction: report(name, fraction)
    seconds[name] = time.perf_counter() - started
    report(name, 1.0)
