"""The one command, `embolens`. Each subcommand has a file of its own and imports what it needs when it runs."""

from __future__ import annotations

import sys

import typer

from cli.audit import audit
from cli.backup import backup
from cli.convert import convert
from cli.demo import demo
from cli.downgrade import downgrade
from cli.evaluate import evaluate
from cli.exit_codes import exit_code_of, explain
from cli.export import export
from cli.health import health
from cli.import_cases import import_cases
from cli.insert import insert
from cli.keys import keys
from cli.models import models
from cli.package import package
from cli.phantom import phantom
from cli.purge import purge
from cli.rules import rules
from cli.segment import segment
from cli.serve import serve
from cli.train import train
from imaging.errors import EmbolensError

app = typer.Typer(
    name="embolens",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Find pulmonary emboli in CT pulmonary angiograms. Research use only; not for diagnosis.",
    epilog="Exit codes: 0 done, 1 failure, 2 usage, 3 input not analysable.",
)
app.command()(serve)
app.command()(segment)
app.command()(phantom)
app.command()(demo)
app.command()(export)
app.command()(health)
app.command()(evaluate)
app.command()(import_cases)
app.command()(convert)
app.command()(insert)
app.command()(train)
app.command()(package)
app.add_typer(keys, name="keys")
app.command()(purge)
app.add_typer(audit, name="audit")
app.command()(backup)
app.command()(downgrade)
app.add_typer(models, name="models")
app.add_typer(rules, name="rules")


def main() -> None:
    """Run the command line; every error of ours becomes one line on stderr and an exit code, here and nowhere else."""
    try:
        app()
    except EmbolensError as error:
        explain(error)
        sys.exit(exit_code_of(error))


if __name__ == "__main__":
    main()
