"""When the rules to retrieve run: every day at their time, once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime

from services.delivery.destinations import Destinations
from services.ingest.intake_rules import Tenants
from services.store.retrievals import RetrievalStore

log = logging.getLogger(__name__)


class Schedule:
    """Looked at every few seconds. A run that was missed, because nothing ran at its time, is made up for on the same
    day; a rule that is added after its time runs on that day, too."""

    def __init__(
        self,
        retrievals: RetrievalStore,
        now: Callable[[], datetime] = datetime.now,
        tenants: Tenants | None = None,
    ) -> None:
        """`now` gives local time; `tenants` say whose studies those of a node are."""
        self._retrievals = retrievals
        self._tenants = tenants or Tenants()
        self._now = now
        self._run: set[str] = set()

    def request_due(self, destinations: Destinations) -> None:
        """Ask for the runs whose time has come today."""
        now = self._now()
        for rule in destinations.retrieve:
            key = f"{rule.name} {now:%Y-%m-%d}"
            if rule.at is None or now.time() < rule.at or key in self._run:
                continue
            run = self._retrievals.request_run(
                node=rule.node,
                rule=rule.query(now.date()).model_dump(),
                priority=rule.priority,
                run_key=key,
                tenant=self._tenants.of(rule.node),
            )
            self._run.add(key)
            log.info("rule %s runs: retrieval %s", rule.name, run.id)
