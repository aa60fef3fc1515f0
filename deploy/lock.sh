#!/bin/sh
# Pins every package, direct or not. The gateway's lock has no torch; the full one is for workers and single machines.
set -eu
compile() {
    # No index or local address may end in a file that others install from.
    .venv/bin/pip-compile --quiet --strip-extras --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
        --no-header --no-annotate --allow-unsafe "$@" pyproject.toml
}
compile --extra worker --extra training --output-file requirements.lock
compile --constraint requirements.lock --output-file requirements-gateway.lock
compile --constraint requirements.lock --extra worker --extra training --extra dev --output-file requirements-dev.lock
# The plain version: a CPU wheel's local suffix is known to its own index alone.
sed -i 's/^torch==\([0-9.]*\)+.*/torch==\1/' requirements.lock requirements-dev.lock
