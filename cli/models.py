"""`embolens models`: which model packages there are, whether they are whole, and which one is used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.exit_codes import ExitCode, explain
from imaging.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.table import Table

    from models.package_catalog import ListedPackage
    from models.packages import ModelPackage

DIGITS = 12
"""Of a SHA-256, for people."""
NOT_FITTED = "fusion and thresholds are not fitted for its networks; until they are, its results mean little"

models = typer.Typer(
    no_args_is_help=True, help="Model packages: which there are, whether they are whole, and which one is used."
)


@models.command("list")
def list_packages() -> None:
    """List the shipped packages and those of the data directory; a broken one with what is wrong with it."""
    from rich.console import Console

    from models.package_catalog import ListedPackage

    used, why = _used_or_complaint()
    listed = [ListedPackage.look(directory) for directory in _known_directories(used)]
    console = Console(markup=False, highlight=False)
    console.print(_table(listed, used, why))
    for one in listed:
        if one.package is None:
            console.print(f"{one.directory.name} is broken: {one.problem}", soft_wrap=True)
        elif not one.package.is_fitted:
            console.print(f"{one.directory.name}: {NOT_FITTED}", soft_wrap=True)
    if used is not None:
        console.print(f"in use ({why}): {used}", soft_wrap=True)


@models.command()
def verify(
    package: Annotated[str | None, typer.Argument(help="Name or directory; default: all.", show_default=False)] = None,
) -> None:
    """Check every digest, and that every network can be built and filled. Exit code 1: something is wrong."""
    from models.package_check import check_package

    damaged = False
    for directory in [_find(package)] if package is not None else _known_directories(_used_or_complaint()[0]):
        try:
            typer.echo(f"{_named(check_package(directory))}: whole")
        except ConfigurationError as error:
            damaged = True
            typer.echo(f"{directory.name}: damaged")
            explain(error)
    if damaged:
        raise typer.Exit(ExitCode.FAILURE)


@models.command("import")
def import_package(
    file: Annotated[
        Path,
        typer.Argument(
            exists=True, dir_okay=False, help="AANet (.pth, .pt, .safetensors) or a lung detector (.weights)."
        ),
    ],
    config: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="The darknet cfg that a .weights file belongs to.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="Package that gives all the rest, by name or directory; default: the shipped one."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Of the new package; default: the base's with the file's.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None, typer.Option(file_okay=False, help="Of the new package; default: in the data directory.")
    ] = None,
) -> None:
    """Make a package with one network exchanged. Its fusion and thresholds are then those of other weights."""
    from models.package_import import import_network
    from models.packages import default_package_directory, load_package
    from services.settings import settings

    given = load_package(_find(base) if base is not None else default_package_directory())
    called = _plain_name(name or f"{given.name}-{file.stem}")
    if output is None:
        _refuse_shipped_name(called)
    written = import_network(file, given, output or settings().packages_folder / called, name=called, config=config)
    typer.echo(f"{_named(written)}: {written.directory}")
    typer.echo(f"{written.name}: {NOT_FITTED}")


@models.command()
def use(
    package: Annotated[str | None, typer.Argument(help="Name or directory.", show_default=False)] = None,
    default: Annotated[bool, typer.Option("--default", help="Go back to the shipped package.")] = False,
) -> None:
    """Choose, and verify, the package that every process started on this data directory from now on loads."""
    from models.package_check import check_package
    from models.packages import default_package_directory
    from services.chosen_package import choose_package, forget_choice
    from services.settings import settings

    if default == (package is not None):
        raise typer.BadParameter("name a package, or give --default")
    chosen = settings()
    if package is None:
        forget_choice(chosen.data_dir)
        typer.echo(f"{default_package_directory().name}, the shipped package, is used by what is started from now on.")
    else:
        checked = check_package(_find(package))
        choose_package(chosen.data_dir, checked.directory)
        typer.echo(f"{_named(checked)} is used by what is started from now on in {chosen.data_dir}.")
        if not checked.is_fitted:
            typer.echo(f"{checked.name}: {NOT_FITTED}", err=True)
    if chosen.package_dir is not None:
        typer.echo(f"EMBOLENS_PACKAGE_DIR is set to {chosen.package_dir} and wins while it is.", err=True)


def _folders() -> list[Path]:
    """This site's packages before the shipped ones; `import` gives none of them a shipped one's name."""
    from models.packages import shipped_folder
    from services.settings import settings

    return [settings().packages_folder, shipped_folder()]


def _find(name_or_directory: str) -> Path:
    from models.package_catalog import find_package

    return find_package(name_or_directory, _folders())


def _known_directories(used: Path | None) -> list[Path]:
    """All packages that go by a name, and the one in use where it is none of these."""
    from models.package_catalog import package_directories

    known = package_directories(_folders())
    elsewhere = used is not None and used.resolve() not in {directory.resolve() for directory in known}
    return [*known, used] if used is not None and elsewhere else known


def _used() -> tuple[Path, str]:
    from models.packages import default_package_directory
    from services.settings import settings

    chosen = settings()
    if chosen.package_dir is not None:
        return chosen.package_dir, "setting"
    directory = chosen.resolved_package_dir
    return (directory, "choice") if directory is not None else (default_package_directory(), "default")


def _used_or_complaint() -> tuple[Path | None, str]:
    """Nothing where the choice cannot be followed: what no process can start with must not hide the list."""
    try:
        return _used()
    except ConfigurationError as error:
        explain(error)
        return None, ""


def _table(listed: list[ListedPackage], used: Path | None, why: str) -> Table:
    from rich.table import Table

    table = Table("name", "version", "SHA-256", "MB", "in use")
    for one in listed:
        mark = why if used is not None and one.directory.resolve() == used.resolve() else ""
        if one.package is None:
            table.add_row(one.directory.name, "broken", "", "", mark)
        else:
            size_mb = f"{one.size_bytes / 1e6:.1f}"
            table.add_row(one.directory.name, one.package.version, one.package.sha256[:DIGITS], size_mb, mark)
    return table


def _named(package: ModelPackage) -> str:
    return f"{package.name} {package.version} ({package.sha256[:DIGITS]})"


def _plain_name(name: str) -> str:
    """A name that is a folder's too."""
    import re

    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ConfigurationError(
            f"package name {name!r}",
            code="package.name",
            remedy="use letters, digits, dot, dash and underscore: --name",
        )
    return name


def _refuse_shipped_name(name: str) -> None:
    from models.packages import shipped_folder

    if (shipped_folder() / name).exists():
        raise ConfigurationError(
            f"{name} is the name of a shipped package", code="package.name", remedy="choose another --name"
        )
