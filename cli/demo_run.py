"""The course of the demo: a server and a PACS come up, a phantom is pushed, its SEG is awaited and judged."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
from pydicom.uid import SegmentationStorage
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from cli.demo_comparison import Comparison, compare
from cli.demo_pacs import AE_TITLE, DemoPacs
from cli.demo_push import push_series
from cli.gateway_client import GatewayClient
from cli.phantom_files import write_ct_dicom, write_truth
from cli.processes import Process
from cli.stage_bars import STAGES, StageBars
from cli.supervisor import Supervisor
from imaging.errors import DeliveryError, EmbolensError
from imaging.phantom import make_phantom
from services.accounts.key_store import FIRST_KEY_FILE
from services.dicom.result_files import PREVIEW_FILE, SEG_FILE
from services.embedded_redis import free_port
from services.process_signals import stop_on_signal
from services.settings import Settings
from services.store.rows import JobState, Stage
from services.store.study_store import StudyStore
from worker.job_progress import stage_fraction

SHAPE_ZYX = (220, 512, 512)
SPACING_ZYX_MM = (1.3, 0.7, 0.7)
EMBOLI = 5
_TIMEOUT_S = 600.0
_POLL_S = 0.2
_WORKER_CRASHES = 3
_OF_THE_MACHINE = ("redis_url", "worker_threads", "worker_device", "inference_backend")  # taken from the environment
_UNSUCCESSFUL = (JobState.FAILED, JobState.CANCELLED, JobState.NOT_ANALYSABLE)


@dataclass(frozen=True, slots=True)
class PacsNode:
    """A DICOM node the result is sent to."""

    ae_title: str
    host: str
    port: int


def run_demo(output: Path, *, seed: int, pacs: PacsNode | None, keep_running: bool) -> bool:
    """Whether the SEG reached the PACS and shows an embolus that was inserted."""
    console = Console()
    seconds: dict[str, float] = {}
    with ExitStack() as stack:
        demo_pacs = None if pacs else stack.enter_context(DemoPacs(output / "pacs"))
        node = pacs or PacsNode(AE_TITLE, "127.0.0.1", demo_pacs.port if demo_pacs else 0)
        settings = _settings(output, node)
        server_log = stack.enter_context((output / "server.log").open("w"))
        console.print("[bold]1[/bold] Starting gateway, listener, worker, relay and Redis")
        supervisor = stack.enter_context(Supervisor(settings, list(Process), output=server_log))
        with _timed("phantom", seconds):
            console.print(f"[bold]2[/bold] Making a phantom CTPA, {' x '.join(map(str, SHAPE_ZYX))}, {EMBOLI} emboli")
            phantom = make_phantom(seed, shape_zyx=SHAPE_ZYX, spacing_zyx_mm=SPACING_ZYX_MM, emboli=EMBOLI)
            write_truth(phantom, output / "phantom", seed=seed)
            slices = write_ct_dicom(phantom, output / "phantom" / "ct", seed=seed)
        supervisor.wait_until_ready(threading.Event())
        key_file = settings.data_dir / FIRST_KEY_FILE
        console.print(f"Worklist: {supervisor.page_url}  (open it now to watch)", soft_wrap=True)
        console.print(f"The key to log in with: {key_file}", highlight=False, soft_wrap=True)
        with _timed("push", seconds):
            console.print("[bold]3[/bold] Pushing it with C-STORE over two associations, as a PACS does")
            _push(slices, settings, node)
        console.print("[bold]4[/bold] Segmenting")
        job = _follow(GatewayClient(supervisor.page_url, key_file=key_file), supervisor, slices[0], seconds)
        seg = _seg_in(demo_pacs) if demo_pacs else _own_copy(settings, job)
        comparison = compare(seg, phantom.volume, phantom.embolus_labelmap)
        _report(console, comparison, job, seconds)
        preview = StudyStore(settings.data_dir).result_file(job["id"], PREVIEW_FILE)
        _say_where(console, output, seg, preview, node, supervisor.page_url, keep_running)
        if keep_running:
            supervisor.watch(stop_on_signal())
    return comparison.found > 0


def _settings(output: Path, node: PacsNode) -> Settings:
    """The demo's own: an operator's database, rules and package, as the environment names them, are not touched."""
    destinations = output / "destinations.toml"
    destinations.write_text(
        f'[[nodes]]\nae_title = "{node.ae_title}"\nhost = "{node.host}"\nport = {node.port}\n', encoding="utf-8"
    )
    # The push names itself after the PACS, from this machine's address.
    intake = output / "intake.toml"
    intake.write_text(f'[associations]\ncalling_ae_titles = ["{node.ae_title}"]\n', encoding="utf-8")
    defaults = {name: field.default for name, field in Settings.model_fields.items() if name not in _OF_THE_MACHINE}
    own = {
        "data_dir": output / "server",
        "gateway_port": free_port(),
        "dicom_port": free_port(),
        "destinations": destinations,
        "intake_rules": intake,
        "series_quiet_s": 2.0,
        "sweep_s": 1.0,
    }
    return Settings(**(defaults | own))


def _push(slices: list[Path], settings: Settings, node: PacsNode) -> None:
    columns = (TextColumn("{task.description:<30}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("slices sent", total=len(slices))
        push_series(
            slices,
            host=settings.dicom_host,
            port=settings.dicom_port,
            called_ae_title=settings.ae_title,
            calling_ae_title=node.ae_title,  # results go back to the node that sent the study
            on_sent=lambda: progress.advance(bar),
        )


def _follow(gateway: GatewayClient, supervisor: Supervisor, first: Path, seconds: dict[str, float]) -> dict[str, Any]:
    """Follow the job until its SEG was taken by the PACS, and return it as the gateway shows it.

    Raises:
        DeliveryError: it ended otherwise, or not in time.
        EmbolensError: the worker cannot work.
    """
    series_uid = pydicom.dcmread(first, stop_before_pixels=True, specific_tags=["SeriesInstanceUID"]).SeriesInstanceUID
    deadline = time.monotonic() + _TIMEOUT_S
    began = time.monotonic()
    with StageBars() as bars:
        while time.monotonic() < deadline:
            supervisor.restart_crashed()
            if supervisor.crashes(Process.WORKER) >= _WORKER_CRASHES:
                raise EmbolensError("the worker keeps ending", code="demo.no_worker", remedy="see server.log")
            found = gateway.get(f"segment?series_instance_uid={series_uid}")["jobs"]
            job: dict[str, Any] = gateway.get(f"segment/{found[0]['id']}") if found else {"state": None}
            if job["state"] in _UNSUCCESSFUL:
                why = job["error"] or job["reasons"]
                raise DeliveryError(f"the job ended as {job['state']}: {why}", code="demo.no_result")
            if job["state"] == JobState.RUNNING and job["stage"]:
                bars(job["stage"], stage_fraction(Stage(job["stage"]), job["progress"]))
            if job["state"] in (JobState.DELIVERING, JobState.COMPLETED):
                bars.finish()
            if job["state"] == JobState.COMPLETED and job["deliveries"]:
                seconds |= job["stage_seconds"]
                seconds["from push to PACS"] = time.monotonic() - began
                return job
            time.sleep(_POLL_S)
    raise DeliveryError(f"no SEG in the PACS after {_TIMEOUT_S:.0f} s", code="demo.timeout", remedy="see server.log")


def _seg_in(pacs: DemoPacs) -> Path:
    segs = [
        path
        for path in pacs.received()
        if pydicom.dcmread(path, specific_tags=["SOPClassUID"]).SOPClassUID == SegmentationStorage
    ]
    if len(segs) != 1:
        raise DeliveryError(f"the PACS holds {len(segs)} SEG, one was expected", code="demo.no_result")
    return segs[0]


def _own_copy(settings: Settings, job: dict[str, Any]) -> Path:
    """The SEG as it was sent; a foreign PACS need not let us read."""
    return StudyStore(settings.data_dir).result_file(job["id"], SEG_FILE)


def _report(console: Console, comparison: Comparison, job: dict[str, Any], seconds: dict[str, float]) -> None:
    table = Table(title="The SEG laid over the phantom", show_header=False)
    table.add_row("emboli inserted", str(comparison.inserted))
    table.add_row("found", str(comparison.found))
    table.add_row("false", str(comparison.false))
    table.add_row("voxel Dice", f"{comparison.dice:.3f}")
    table.add_row("outcome", job["outcome"])
    for name, value in seconds.items():
        table.add_row(STAGES.get(name, name), f"{value:.1f} s")
    console.print(table)


def _say_where(
    console: Console, output: Path, seg: Path, preview: Path, node: PacsNode, page_url: str, running: bool
) -> None:
    console.print(f"SEG sent to {node.ae_title}@{node.host}:{node.port}")
    for what, path in {
        "SEG": seg,
        "preview": preview,
        "phantom and truth": output / "phantom",
        "results": output / "server" / "jobs",
        "log": output / "server.log",
    }.items():
        console.print(f"{what}: {path}", highlight=False, soft_wrap=True)
    page = f"Worklist: {page_url}" if running else "Look at the worklist's page with `embolens demo --keep-running`"
    console.print(page, soft_wrap=True)


@contextmanager
def _timed(name: str, seconds: dict[str, float]) -> Iterator[None]:
    began = time.monotonic()
    yield
    seconds[name] = time.monotonic() - began
