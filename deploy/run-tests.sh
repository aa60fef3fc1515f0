#!/bin/sh
# Runs pytest in a network of its own with nothing in it but loopback: some peers (Orthanc, dcmtk's storescp) cannot
# bind to loopback alone, and a test that tries to reach the outside must fail. Its mounts are its own too: tests that
# fill a disk mount a small one, which is gone with them.
set -eu
if [ "$(id -u)" = 0 ]; then own="unshare --net --mount"; else own="unshare --net --mount --map-root-user"; fi
# shellcheck disable=SC2016
exec $own sh -c 'ip link set lo up && exec .venv/bin/python -m pytest "$@"' pytest "$@"
