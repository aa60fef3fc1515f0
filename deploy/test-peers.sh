#!/bin/sh
# The real peers of the tests. Debian packages where we may install them; otherwise says what is missing and fails.
set -eu
missing=""
need() { # program package
    PATH="$PATH:/usr/sbin" command -v "$1" >/dev/null 2>&1 || missing="$missing $2"
}
need redis-server redis-server
need Orthanc orthanc
[ -e /usr/share/orthanc/plugins/libOrthancDicomWeb.so ] || missing="$missing orthanc-dicomweb"
need storescu dcmtk
need dciodvfy dicom3tools
need chromium chromium
need strace strace
need rsyslogd rsyslog
ls /usr/lib/*/rsyslog/lmnsd_ossl.so >/dev/null 2>&1 || missing="$missing rsyslog-openssl"
need xmllint libxml2-utils
need unshare util-linux
need ip iproute2
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing="$missing postgresql"
[ -n "$missing" ] || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "Installing what the tests talk to:$missing"
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends $missing; } >/dev/null && exit 0
fi
echo "The tests need these Debian packages and they could not be installed:$missing" >&2
echo "Run as an administrator: apt-get install$missing" >&2
exit 1
