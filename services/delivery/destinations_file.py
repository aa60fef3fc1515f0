"""The destinations as they are now: the file is read again when it has changed."""

from __future__ import annotations

import logging
from pathlib import Path

from imaging.errors import ConfigurationError
from services.delivery.destinations import Destinations

log = logging.getLogger(__name__)


class DestinationsFile:
    """For one process that goes on for long. A mistake in the changed file leaves everything as it was."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigurationError when the file cannot be read."""
        self._path = path
        self._modified_ns = self._modified()
        self._destinations = Destinations.load(path)

    def current(self) -> Destinations:
        """The same object until the file has changed."""
        modified_ns = self._modified()
        if modified_ns != self._modified_ns:
            self._modified_ns = modified_ns
            try:
                self._destinations = Destinations.load(self._path)
            except ConfigurationError as error:
                log.error("the destinations stay as they were: %s", error)
            else:
                log.info("destinations read again")
        return self._destinations

    def _modified(self) -> int:
        try:
            return self._path.stat().st_mtime_ns
        except FileNotFoundError:
            return 0
