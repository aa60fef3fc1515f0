#!/bin/sh
# Runs pytest in a network of its own with nothing in it but loopback: some peers (Orthanc, dcmtk's storescp) cannot
# bind to loopback alone, and a test that tries to reach the outside must fail.
set -eu
if [ "$(id -u)" = 0 ]; then own_network="unshare --net"; else own_network="unshare --net --map-root-user"; fi
# shellcheck disable=SC2016
exec $own_network sh -c 'ip link set lo up && exec .venv/bin/python -m pytest "$@"' pytest "$@"
