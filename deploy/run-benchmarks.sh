#!/bin/sh
# Runs the benchmarks in a network of its own, as run-tests.sh does: Orthanc and dcmtk cannot bind to loopback alone.
set -eu
if [ "$(id -u)" = 0 ]; then own="unshare --net --mount"; else own="unshare --net --mount --map-root-user"; fi
# shellcheck disable=SC2016
exec $own sh -c 'ip link set lo up && exec .venv/bin/python -m benchmarks "$@"' benchmarks "$@"
