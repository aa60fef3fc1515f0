"""`embolens backup DIR`: a copy of a running site."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def backup(
    directory: Annotated[Path, typer.Argument(file_okay=False, help="Empty, or not there yet; on another disk.")],
) -> None:
    """Copy the database and all files while everything goes on. To restore, start on a copy of the directory.

    With PostgreSQL, run pg_dump first: this copies the files alone. See docs/operations.md.
    """
    from services.settings import settings
    from services.store.backup import back_up
    from services.store.database import Database
    from services.store.study_store import StudyStore

    database = Database.of(settings())
    made = back_up(database, StudyStore.of(settings()), directory)
    database.close()
    without = "" if made.has_database else ", without the database: the dump made by pg_dump belongs to them"
    typer.echo(f"{made.files} files in {directory}{without}")
