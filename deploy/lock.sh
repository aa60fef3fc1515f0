#!/bin/sh
# Pins every package, direct or not, with the SHA-256 of each of its files: pip then installs nothing else.
# requirements-gateway.lock has no torch; requirements.lock is for workers and single machines; -dev adds what tests need.
# torch stands without a hash in requirements-torch.lock: its CPU and CUDA builds are different files of one version.
set -eu
compile() {
    .venv/bin/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate --no-emit-index-url \
        --no-emit-package torch "$@" pyproject.toml
}
compile --extra worker --extra training --output-file requirements.lock
compile --constraint requirements.lock --output-file requirements-gateway.lock
compile --constraint requirements.lock --extra worker --extra training --extra dev --output-file requirements-dev.lock
compile --constraint requirements-dev.lock --extra worker --extra training --extra dev --extra bench \
    --output-file requirements-bench.lock
sed -n 's/.*"\(torch==[0-9.]*\)".*/\1/p' pyproject.toml >requirements-torch.lock
