"""`embolens downgrade REVISION`: the way back to an older Embolens."""

from __future__ import annotations

from typing import Annotated

import typer


def downgrade(
    revision: Annotated[str, typer.Argument(help="As the older Embolens names it, for instance 0005.")],
) -> None:
    """Bring the database's schema back to an older revision; docs/operations.md says what each step loses.

    Stop all processes first: those of this version bring the schema forward again when they start.
    """
    from services.settings import settings
    from services.store.database import Database

    database = Database.of(settings())
    database.downgrade(revision)
    database.close()
    typer.echo(f"the database has schema {revision}")
