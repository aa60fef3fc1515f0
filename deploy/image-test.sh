#!/bin/sh
# Builds both images with buildah, which needs no engine, and runs each as its non-root user: --help, its user, no torch
# in the gateway's. Needs root and Debian. IMAGE_TARGETS="gateway" builds one alone; WORK says where (default: a
# temporary folder, removed at the end). A registry is not asked: the base image is a fresh Debian with its python3.
set -eu
cd "$(dirname "$0")/.."
targets=${IMAGE_TARGETS:-gateway worker}
base=localhost/embolens-test-python
work=${WORK:-$(mktemp -d)}
[ -n "${WORK:-}" ] || trap 'rm -rf "$work"' EXIT

missing=""
for program in buildah debootstrap; do
    PATH="$PATH:/usr/sbin" command -v "$program" >/dev/null 2>&1 || missing="$missing $program"
done
if [ -n "$missing" ]; then
    [ "$(id -u)" = 0 ] || { echo "As an administrator: apt-get install$missing" >&2; exit 1; }
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi

build() { buildah --storage-driver vfs --root "$work/storage" --runroot "$work/run" "$@"; }

if ! build inspect "$base" >/dev/null 2>&1; then
    [ -d "$work/debian/usr" ] || /usr/sbin/debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates \
        bookworm "$work/debian" >"$work/debootstrap.log" 2>&1 || { tail "$work/debootstrap.log" >&2; exit 1; }
    container=$(build from scratch)
    build add "$container" "$work/debian" / >/dev/null
    build commit --rm "$container" "$base" >/dev/null
fi

# This machine's way to its packages goes into the build by mounts, not into the image.
mounts="--volume /etc/ssl/certs:/etc/ssl/certs:ro"
.venv/bin/pip config list --global >/dev/null 2>&1 && [ -f /etc/pip.conf ] && mounts="$mounts --volume /etc/pip.conf:/etc/pip.conf:ro"
for local in ${PIP_LOCAL:-}; do mounts="$mounts --volume $local:$local:ro"; done

for target in $targets; do
    # shellcheck disable=SC2086
    build bud --isolation chroot --pull-never $mounts --target "$target" --tag "embolens-$target" \
        --build-arg PYTHON_IMAGE="$base" ${PIP_INDEX_URL:+--build-arg PIP_INDEX_URL="$PIP_INDEX_URL"} \
        ${TORCH_INDEX_URL:+--build-arg TORCH_INDEX_URL="$TORCH_INDEX_URL"} . \
        >"$work/build-$target.log" 2>&1 || { tail -n 40 "$work/build-$target.log" >&2; exit 1; }
    container=$(build from --pull-never "embolens-$target")
    in_image() { build run --isolation chroot "$container" -- "$@"; }
    in_image embolens --help >/dev/null
    [ "$(in_image id -u)" = 10001 ] || { echo "$target does not run as user 10001" >&2; exit 1; }
    in_image sh -c 'touch "$EMBOLENS_DATA_DIR/written" && ! touch /app/written 2>/dev/null'
    in_image sh -c '! command -v gcc && ! test -e /opt/venv/bin/pip'
    if [ "$target" = gateway ]; then
        in_image python3 -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is not None)'
        in_image python3 -c 'import api.server, services.ingest.listener, services.delivery.relay'
    else
        in_image python3 -c 'import worker.tasks, models.cascade'
    fi
    build rm "$container" >/dev/null
    echo "$target: built, runs as a non-root user"
done
