"""What the relay leaves in the audit trail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from services.audit.codes import BEGIN_TRANSFERRING, INSTANCES_TRANSFERRED
from services.audit.message import EventOutcome
from services.audit.written import written_messages
from services.delivery.relay import Relay
from services.settings import Settings
from services.store.outbox import Outbox
from services.store.rows import JobRow
from tests.services.delivery.peers import StoreScp
from tests.services.ingest.peers import wait_until


def test_a_delivery_begins_fails_and_arrives_with_a_message_each(
    settings: Settings,
    finished_job: Callable[..., JobRow],
    relay: Relay,
    outbox: Outbox,
    store_scp: StoreScp,
) -> None:
    Path(settings.destinations).write_text(
        f'[[nodes]]\nae_title = "PACS"\nhost = "127.0.0.1"\nport = {store_scp.port}\n'
    )
    job = finished_job("node:PACS")
    relay.deliver_due()
    store_scp.start()
    wait_until(lambda: relay.deliver_due() and outbox.of_job(job.id)[0].state == "delivered")
    begun, failed, sent = written_messages(settings.data_dir / "audit")
    assert [begun.event, failed.event, sent.event] == [BEGIN_TRANSFERRING, INSTANCES_TRANSFERRED, INSTANCES_TRANSFERRED]
    assert (failed.outcome, sent.outcome) == (EventOutcome.MINOR_FAILURE, EventOutcome.SUCCESS)
    assert sent.participants[1].user_id == "node:PACS"
    assert sent.participants[1].address == "127.0.0.1"
    assert sum(sent.objects[0].instances.values()) == 1
    assert sent.objects[0].details == {"Job": job.id}
