"""Who comes second to a data directory is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from imaging.errors import ConfigurationError
from services.store.directory_lock import lock_directory


def test_a_lock_is_held_by_one_until_it_lets_go(tmp_path: Path) -> None:
    held = lock_directory(tmp_path / "data", "listener", "listener")
    with pytest.raises(ConfigurationError, match="another listener works in"):
        lock_directory(tmp_path / "data", "listener", "listener")
    lock_directory(tmp_path / "data", "serve", "`embolens serve`").close()
    held.close()
    lock_directory(tmp_path / "data", "listener", "listener").close()
