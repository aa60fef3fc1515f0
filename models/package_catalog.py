"""Which packages there are, and which of them a name means.

A package goes by the name of its folder. Folders are searched in the order given; a path is taken as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from imaging.errors import ConfigurationError
from models.packages import MANIFEST, ModelPackage, load_package


@dataclass(frozen=True, slots=True)
class ListedPackage:
    """A folder that holds a package, or what is wrong with it.

    Attributes:
        package: None where it is broken, with the reason in `problem`.
    """

    directory: Path
    package: ModelPackage | None
    problem: str = ""

    @classmethod
    def look(cls, directory: Path) -> ListedPackage:
        """Verifies the digests; what is broken is listed too."""
        try:
            return cls(directory, load_package(directory))
        except ConfigurationError as error:
            return cls(directory, None, str(error))

    @property
    def size_bytes(self) -> int:
        """Of all its files together; 0 where it is broken."""
        if self.package is None:
            return 0
        return sum((self.directory / name).stat().st_size for name in (MANIFEST, *self.package.files))


def package_directories(folders: Sequence[Path]) -> list[Path]:
    """Every folder in `folders` that is not hidden, package or not: one without `package.toml` is a broken one."""
    return [
        path
        for folder in folders
        if folder.is_dir()
        for path in sorted(folder.iterdir())
        if path.is_dir() and not path.name.startswith((".", "_"))
    ]


def find_package(name_or_directory: str, folders: Sequence[Path]) -> Path:
    """The package of that name in `folders`, else the directory.

    Raises:
        ConfigurationError: there is neither.
    """
    known = package_directories(folders)
    for directory in known:
        if directory.name == name_or_directory:
            return directory
    directory = Path(name_or_directory)
    if not directory.is_dir():
        raise ConfigurationError(
            f"no model package {name_or_directory!r}",
            code="package.unknown",
            remedy=f"name one of {', '.join(path.name for path in known) or 'those you install'}, or a directory",
        )
    return directory
