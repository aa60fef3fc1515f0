"""`embolens audit`: whether the audit trail is whole, and what is in it."""

from __future__ import annotations

import json
from typing import Annotated

import typer

audit = typer.Typer(no_args_is_help=True, help="The audit trail: who did what to which study.")


@audit.command()
def verify(
    archived: Annotated[bool, typer.Option(help="The oldest files may have been moved elsewhere.")] = False,
) -> None:
    """Look whether lines were altered, removed, moved or cut off. Exit code 1 where there are."""
    from cli.process_user import process_user
    from imaging.errors import EmbolensError
    from services.audit.events import audit_log_used
    from services.audit.trail import AuditTrail, audit_directory, audit_key
    from services.audit.verifier import verify as verify_chains
    from services.settings import settings

    key = audit_key(settings())
    reports = verify_chains(audit_directory(settings()), key, archived=archived)
    for report in reports:
        typer.echo(f"{report.chain}: {report.lines} lines, {'BROKEN' if report.problems else 'whole'}")
        for text in (*report.problems, *(f"({notice})" for notice in report.notices)):
            typer.echo(f"  {text}")
    if not reports:
        typer.echo("no audit trail yet")
    if key is None:
        typer.echo("Lines are not signed: set EMBOLENS_AUDIT_KEY_FILE, so that rewriting them needs a key.")
    broken = [report.chain for report in reports if report.problems]
    audit_log_used(AuditTrail(settings(), "cli"), process_user(), f"verified: {len(broken)} chains broken")
    if broken:
        raise EmbolensError(
            f"the audit trail is not what was written: {', '.join(broken)}",
            code="audit.broken",
            remedy="compare it with the syslog server's copy",
        )


@audit.command()
def show(
    study: Annotated[str, typer.Option(help="Study Instance UID; empty: everything.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """What was done, oldest first."""
    from cli.process_user import process_user
    from services.audit.events import audit_log_used
    from services.audit.trail import AuditTrail, audit_directory
    from services.audit.written import written_messages
    from services.settings import settings

    for message in written_messages(audit_directory(settings()), study):
        if as_json:
            typer.echo(json.dumps(message.to_record(), ensure_ascii=False))
            continue
        who = " > ".join(
            f"{one.user_id}{f' [{one.address}]' if one.address else ''}{'*' if one.is_requestor else ''}"
            for one in message.participants
        )
        what = ", ".join((message.event.meaning, *(code.meaning for code in message.event_types)))
        outcome = f"  {message.outcome_description}" if message.outcome_description else ""
        typer.echo(f"{message.time:%Y-%m-%d %H:%M:%S}Z  {what} ({message.action})  {who}{outcome}")
    audit_log_used(AuditTrail(settings(), "cli"), process_user(), f"shown: {study or 'everything'}")
