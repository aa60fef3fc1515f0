from __future__ import annotations

from services.delivery.destinations_file import DestinationsFile
from services.settings import Settings
from tests.services.delivery.peers import write_destinations

FOLDER = '[[folders]]\nname = "{0}"\npath = "/tmp/{0}"\n'


def test_a_changed_file_counts_at_once_and_a_mistake_in_it_changes_nothing(settings: Settings) -> None:
    write_destinations(settings, FOLDER.format("a"))
    file = DestinationsFile(settings.destinations)
    first = file.current()
    assert file.current() is first
    write_destinations(settings, FOLDER.format("b") + "[[folder]]\n")
    assert file.current() is first
    write_destinations(settings, FOLDER.format("c"))
    assert file.current().find("folder:c") is not None
    settings.destinations.unlink()
    assert file.current().find("folder:c") is not None
