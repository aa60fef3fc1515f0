"""rsyslog as a hospital runs it: TLS, certificates of both sides checked; on a free port, ended by its process id."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from services.embedded_redis import free_port
from tests.end_to_end.hospital import wait_for
from tests.services.certificates import Authority, Credentials

_RSYSLOGD = "/usr/sbin/rsyslogd"


@dataclass
class SyslogServer:
    """`received` is what it wrote down, a message a line."""

    port: int
    received: Path
    process: subprocess.Popen[bytes]

    def lines(self) -> list[str]:
        return self.received.read_text(encoding="utf-8").splitlines() if self.received.exists() else []

    def wait_for_lines(self, count: int) -> list[str]:
        return wait_for(f"{count} messages at the syslog server", lambda: self._at_least(count), 20)

    def _at_least(self, count: int) -> list[str] | None:
        lines = self.lines()
        return lines if len(lines) >= count else None


@contextmanager
def running_syslog(
    folder: Path, authority: Authority, credentials: Credentials, port: int | None = None
) -> Iterator[SyslogServer]:
    folder.mkdir(exist_ok=True)
    port = free_port() if port is None else port
    received, configuration = folder / "received.log", folder / "rsyslog.conf"
    configuration.write_text(f"""
global(workDirectory="{folder}" maxMessageSize="256k" DefaultNetstreamDriver="ossl"
  DefaultNetstreamDriverCAFile="{authority.certificate}" DefaultNetstreamDriverCertFile="{credentials.certificate}"
  DefaultNetstreamDriverKeyFile="{credentials.key}")
module(load="imtcp" StreamDriver.Name="ossl" StreamDriver.Mode="1" StreamDriver.AuthMode="x509/certvalid")
input(type="imtcp" port="{port}" address="127.0.0.1")
template(name="raw" type="string" string="%rawmsg%\\n")
action(type="omfile" file="{received}" template="raw")
""")
    command = [_RSYSLOGD, "-n", "-f", str(configuration), "-i", str(folder / "pid")]
    with (folder / "rsyslogd.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_for("rsyslog listens", lambda: _listens(port), 20)
        yield SyslogServer(port, received, process)
    finally:
        process.terminate()
        process.wait(timeout=20)


def _listens(port: int) -> bool:
    wanted = f":{port:04X} "
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return any(wanted in line.split()[1] + " " and line.split()[3] == "0A" for line in lines)
