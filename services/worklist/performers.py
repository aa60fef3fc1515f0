"""The performers of all worklists that destinations.toml lists, in threads of the listener's process."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from imaging.errors import ConfigurationError
from services.delivery.destinations import Destinations
from services.ingest.intake_rules import Tenants
from services.settings import Settings
from services.store.database import Database
from services.store.jobs import JobStore
from services.store.outbox import Outbox
from services.store.retrievals import RetrievalStore
from services.store.study_store import StudyStore
from services.store.worklist_items import WorklistItems
from services.worklist.input_standing import InputLook

if TYPE_CHECKING:  # and httpx and websockets, for which few have a use
    from services.worklist.performer import Performer

log = logging.getLogger(__name__)


class Performers:
    """The listener is one per data directory, and so are these: no workitem is claimed twice."""

    def __init__(
        self, settings: Settings, database: Database, store: StudyStore, tenants: Tenants | None = None
    ) -> None:
        items, outbox = WorklistItems(database), Outbox(database)
        jobs, retrievals = JobStore(database), RetrievalStore(database)
        try:
            worklists = Destinations.load(settings.destinations).worklists
        except ConfigurationError as error:  # studies are received all the same
            log.error("no worklist is worked on: %s", error)
            worklists = ()
        self._performers: list[Performer] = []
        for one in worklists:
            from services.worklist.performer import Performer

            inputs = InputLook(settings, items, jobs, retrievals, outbox, store, tenants or Tenants(), one.name)
            self._performers.append(Performer(one, settings, items, inputs, outbox, store))
        if beyond := items.held_beyond([one.name for one in worklists]):
            log.warning("%d workitems in progress are of worklists that destinations.toml lists no more", beyond)

    def start(self) -> None:
        for performer in self._performers:
            performer.start()

    def stop(self) -> None:
        for performer in self._performers:
            performer.stop()
