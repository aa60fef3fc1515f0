#!/bin/sh
# Runs pytest in a network of its own with nothing in it but loopback: some peers (Orthanc, dcmtk's storescp) cannot
# bind to loopback alone, and a test that tries to reach the outside must fail. Its mounts are its own too: tests that
# fill a disk mount a small one, which is gone with them.
#
# Without arguments all tests run, in two lanes beside each other: those in tests/faults and tests/services, most of whose
# time is waiting (for what they broke to come back, for peers), and all others.
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
(
    status=0
    run_pytest tests/faults || status=$?
    run_pytest tests/services || status=$?
    exit "$status"
) >"$said" 2>&1 &
lane=$!
trap 'kill "$lane" 2>/dev/null || true; rm -f "$said"' EXIT
status=0
run_pytest --ignore=tests/faults --ignore=tests/services || status=$?
echo "The tests in tests/faults and tests/services:"
wait "$lane" || status=$?
cat "$said"
exit "$status"
