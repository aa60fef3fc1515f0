"""`embolens keys`: the API keys of this site's clients."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services.accounts.api_key import ApiKey
    from services.accounts.key_store import KeyStore
    from services.audit.trail import AuditTrail
    from services.store.rows import ApiKeyRow

keys = typer.Typer(no_args_is_help=True, help="API keys: who may send studies, and see which.")


@keys.command("create")
def create(
    name: Annotated[str, typer.Argument(help="Of the client, as logs name it.")],
    scope: Annotated[list[str], typer.Option(help="read, submit or admin; may be given several times.")],
    tenant: Annotated[str, typer.Option(help="Whose studies it sends and sees.")] = "default",
    days: Annotated[float, typer.Option(min=0, help="Valid for so long; 0: until it is revoked.")] = 365,
    max_upload_bytes: Annotated[int, typer.Option(min=0, help="Largest upload; 0: the gateway's limit.")] = 0,
) -> None:
    """Make a key. It is printed on stdout, once: only its hash is kept."""
    from datetime import timedelta

    from services.accounts.principal import Scope

    unknown = sorted(set(scope) - set(Scope))
    if unknown:
        raise typer.BadParameter(f"unknown scope {', '.join(unknown)}; known: {', '.join(Scope)}")
    trail = _trail()
    with _store() as store:
        row, key = store.create(
            name,
            scopes=[Scope(one) for one in scope],
            tenant=tenant,
            valid_for=timedelta(days=days) if days else None,
            max_upload_bytes=max_upload_bytes or None,
        )
    _write_down(trail, f"API key {row.id} of {row.name} made: {', '.join(row.scopes)}, tenant {row.tenant}")
    _print_once(row, key)


@keys.command("list")
def list_keys() -> None:
    """Every key with its id, never its secret."""
    from rich.console import Console
    from rich.table import Table

    from services.accounts.key_store import is_usable

    table = Table("id", "name", "tenant", "scopes", "state", "created", "last used", "expires")
    with _store() as store:
        for row in store.all():
            state = "valid" if is_usable(row) else "revoked" if row.revoked_at else "expired"
            times = [_day(time) for time in (row.created_at, row.last_used_at, row.expires_at)]
            table.add_row(row.id, row.name, row.tenant, ", ".join(row.scopes), state, *times)
    Console(width=160).print(table)


@keys.command("rotate")
def rotate(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As `embolens keys list` shows it.")],
    overlap_hours: Annotated[float, typer.Option(min=0, help="The old key stays valid for so long.")] = 24,
) -> None:
    """Make a new key in the place of one, for the same client. It is printed on stdout, once."""
    from datetime import timedelta

    trail = _trail()
    with _store() as store:
        row, key = store.rotate(key_id, overlap=timedelta(hours=overlap_hours))
    _write_down(trail, f"API key {row.id} of {row.name} made in the place of {key_id}")
    _print_once(row, key)


@keys.command("revoke")
def revoke(key_id: Annotated[str, typer.Argument(metavar="ID", help="As `embolens keys list` shows it.")]) -> None:
    """Refuse a key from now on, and log out who has logged in with it."""
    trail = _trail()
    with _store() as store:
        row = store.revoke(key_id)
    _write_down(trail, f"API key {row.id} of {row.name} revoked")
    typer.echo(f"{row.id} ({row.name}) is revoked")


@contextmanager
def _store() -> Iterator[KeyStore]:
    from services.accounts.key_store import KeyStore
    from services.settings import settings
    from services.store.database import Database

    database = Database(settings().resolved_database_url)
    database.upgrade()
    try:
        yield KeyStore(database)
    finally:
        database.close()


def _trail() -> AuditTrail:
    """Before anything is changed: whoever has not the key that signs the trail changes nothing."""
    from services.audit.trail import AuditTrail
    from services.settings import settings

    return AuditTrail(settings(), "cli")


def _write_down(trail: AuditTrail, what: str) -> None:
    from cli.process_user import process_user
    from services.audit.events import security_configured

    security_configured(trail, process_user(), what)


def _print_once(row: ApiKeyRow, key: ApiKey) -> None:
    """The key alone on stdout, so that it can be piped into a secret store."""
    until = f"until {_day(row.expires_at)}" if row.expires_at else "until it is revoked"
    typer.echo(f"{row.name}: {', '.join(row.scopes)}, tenant {row.tenant}, {until}; not shown again:", err=True)
    typer.echo(key.text())


def _day(time: object) -> str:
    return "" if time is None else f"{time:%Y-%m-%d %H:%M}"
