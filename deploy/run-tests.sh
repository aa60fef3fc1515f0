#!/bin/sh
# Runs pytest in a network of its own with nothing in it but loopback: some peers (Orthanc, dcmtk's storescp) cannot
# bind to loopback alone, and a test that tries to reach the outside must fail. Its mounts are its own too: tests that
# fill a disk mount a small one, which is gone with them.
#
# Without arguments all tests run, those in tests/faults beside the others: most of their time is waiting for what they
# broke to come back.
set -eu
if [ "$(id -u)" = 0 ]; then own="unshare --net --mount"; else own="unshare --net --mount --map-root-user"; fi
run_pytest() {
    # shellcheck disable=SC2016
    $own sh -c 'ip link set lo up && exec .venv/bin/python -m pytest "$@"' pytest "$@"
}
if [ $# -gt 0 ]; then
    run_pytest "$@"
    exit
fi
said=$(mktemp)
run_pytest tests/faults >"$said" 2>&1 &
faults=$!
trap 'kill "$faults" 2>/dev/null || true; rm -f "$said"' EXIT
status=0
run_pytest --ignore=tests/faults || status=$?
echo "The tests in tests/faults:"
wait "$faults" || status=$?
cat "$said"
exit "$status"
