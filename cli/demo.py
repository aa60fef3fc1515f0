"""`embolens demo`: the main job before your eyes, from a C-STORE push to a DICOM SEG in the PACS."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cli.demo_run import PacsNode

_NODE = re.compile(r"^(?P<ae_title>[^@\s]{1,16})@(?P<host>[^@\s]+):(?P<port>\d{1,5})$")


def demo(
    pacs: Annotated[
        str, typer.Option(help="Send the result to this PACS instead of the demo's own.", metavar="AET@HOST:PORT")
    ] = "",
    output: Annotated[
        Path, typer.Option(help="Folder for everything the demo makes; an earlier demo there is replaced.")
    ] = Path(".embolens/demo"),
    seed: Annotated[int, typer.Option(min=0, help="Another seed, another phantom.")] = 100_007,
    keep_running: Annotated[bool, typer.Option("--keep-running", help="Leave the server up until Ctrl-C.")] = False,
) -> None:
    """Push a phantom CTPA with known emboli through every process and wait for its SEG to lie in the PACS.

    Exit code 0 only if the SEG came back and shows an inserted embolus.
    """
    from cli.demo_run import run_demo

    node = _parse_node(pacs) if pacs else None
    if not run_demo(_emptied(output), seed=seed, pacs=node, keep_running=keep_running):
        raise typer.Exit(1)


def _parse_node(written: str) -> PacsNode:
    from cli.demo_run import PacsNode

    match = _NODE.match(written)
    if match is None:
        raise typer.BadParameter(f"{written!r} is not AET@HOST:PORT")
    return PacsNode(match["ae_title"], match["host"], int(match["port"]))


def _emptied(output: Path) -> Path:
    """The folder, new or emptied of an earlier demo; anything else in it is not ours to delete."""
    import shutil

    mark = output / ".embolens-demo"
    if output.exists():
        if not mark.exists() and any(output.iterdir()):
            raise typer.BadParameter(f"{output} is not empty and holds no earlier demo")
        shutil.rmtree(output)
    output.mkdir(parents=True)
    mark.touch()
    return output.resolve()
