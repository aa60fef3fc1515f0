"""`embolens purge`: what retention takes from the disk, now or as a look at what it would."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.table import Table

    from services.delivery.retention import Decision


def purge(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go, what stays, and why.")] = False,
) -> None:
    """Purge inputs and results of delivered jobs, by the settings EMBOLENS_RETENTION_* and EMBOLENS_PURGE_*.

    The relay does so by itself; this does it at once.
    """
    from rich.console import Console

    from cli.process_user import process_user
    from services.audit.events import Peer
    from services.delivery.retention import Retention
    from services.settings import settings
    from services.store.database import Database
    from services.store.study_store import StudyStore

    database = Database.of(settings())
    database.upgrade()
    asked_by = Peer(process_user(), None)
    retention = Retention(settings(), database, StudyStore.of(settings()), asked_by=asked_by)
    Console(width=180).print(_table(retention.plan(whole=True) if dry_run else retention.purge_now()))
    database.close()


def _table(decisions: Iterable[Decision]) -> Table:
    from rich.table import Table

    table = Table("files", "of", "ended", "goes", "MiB", "why")
    for decision in decisions:
        one = decision.one
        size = f"{decision.size_bytes / 1024**2:.1f}" if decision.goes else ""
        goes = "yes" if decision.goes else "no"
        table.add_row(one.what, one.name, f"{one.ended_at:%Y-%m-%d %H:%M}", goes, size, decision.because)
    return table
