"""Who may open an association with the listener: nodes of destinations.toml and who is named in intake.toml."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

from imaging.errors import ConfigurationError
from services.accounts.exposure import is_loopback
from services.delivery.destinations import Destinations
from services.ingest.intake_rules import IntakeRules
from services.settings import Settings

log = logging.getLogger(__name__)

_RESOLVED_FOR_S = 60.0

# Result, source and reason of an A-ASSOCIATE-RJ (PS3.8 9.3.4).
_NO_REASON = (0x01, 0x01, 0x01)
_CALLING_AE_TITLE = (0x01, 0x01, 0x03)
COME_AGAIN = (0x02, 0x01, 0x01)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an association is rejected, for our log, and what its requestor is told."""

    reason: tuple[int, int, int]
    why: str


class KnownPeers:
    """Judges requests for associations. A changed destinations.toml counts from the next request on."""

    def __init__(self, rules: IntakeRules, settings: Settings) -> None:
        self._allowed = rules.associations
        self._named = {*rules.associations.calling_ae_titles, *rules.calling_ae_titles.named}
        self._settings = settings
        self._destinations = Destinations()
        self._resolved: dict[str, tuple[float, frozenset[IPv4Address | IPv6Address]]] = {}

    def warn_of_open_doors(self) -> None:
        """For the log of a listener that starts."""
        host, is_mutual = self._settings.dicom_host, self._settings.tls_trusted is not None
        if self._allowed.promiscuous and not is_mutual and not is_loopback(host):
            log.warning(
                "PROMISCUOUS: whoever reaches %s:%d may send studies, without TLS and under any AE title; take "
                "`promiscuous` out of [associations] in intake.toml, or set EMBOLENS_TLS_TRUSTED",
                host,
                self._settings.dicom_port,
            )
        if not self._allowed.promiscuous and not self._named and not self._nodes():
            log.warning("nobody may open an association: no [[nodes]] in destinations.toml, none named in intake.toml")

    def refusal(
        self, calling_ae_title: str, address: str, our_address: str, certificate: Mapping[str, Any] | None
    ) -> Refusal | None:
        """None for a peer that is let in.

        Args:
            our_address: the one that it has connected to.
            certificate: what it has shown, as `ssl.SSLSocket.getpeercert` gives it.
        """
        if not self._allowed.allow_address(address):
            return Refusal(_NO_REASON, "its address is not among the allowed ones")
        if calling_ae_title == self._settings.ae_title and (is_loopback(address) or address == our_address):
            return None  # this machine, asking whether the listener lives
        if self._allowed.certificate_names_ae_title and calling_ae_title.upper() not in _names(certificate):
            return Refusal(_CALLING_AE_TITLE, "its certificate does not name that AE title")
        if self._allowed.promiscuous or calling_ae_title in self._named:
            return None
        hosts = [host for ae_title, host in self._nodes() if ae_title == calling_ae_title]
        if not hosts:
            return Refusal(_CALLING_AE_TITLE, "neither destinations.toml nor intake.toml knows that AE title")
        if not self._allowed.nodes_come_from_their_host:
            return None
        return self._unless_from(hosts[0], address)

    def _unless_from(self, host: str, address: str) -> Refusal | None:
        known = self._addresses(host)
        if not known:
            return Refusal(COME_AGAIN, f"the node's host {host} has no address at the moment")
        peer = _parsed(address)
        if peer in known or (peer.is_loopback and any(one.is_loopback for one in known)):
            return None
        return Refusal(_CALLING_AE_TITLE, f"that node is at {host} (see nodes_come_from_their_host in intake.toml)")

    def _nodes(self) -> list[tuple[str, str]]:
        try:
            self._destinations = Destinations.load(self._settings.destinations)
        except ConfigurationError as error:
            log.error("the nodes known so far stay: %s", error.message)
        return [(node.ae_title, node.host) for node in self._destinations.nodes]

    def _addresses(self, host: str) -> frozenset[IPv4Address | IPv6Address]:
        until, addresses = self._resolved.get(host, (0.0, frozenset()))
        if time.monotonic() >= until:
            try:
                found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            except (OSError, UnicodeError):  # the latter where the host is no name at all, such as "pacs..lan"
                return addresses  # the last ones known
            addresses = frozenset(_parsed(str(entry[4][0])) for entry in found)
            self._resolved[host] = (time.monotonic() + _RESOLVED_FOR_S, addresses)
        return addresses


def _parsed(address: str) -> IPv4Address | IPv6Address:
    parsed = ip_address(address.split("%")[0])
    return getattr(parsed, "ipv4_mapped", None) or parsed


def _names(certificate: Mapping[str, Any] | None) -> set[str]:
    """Common names of the subject and DNS names beside it, in upper case: DNS knows no other difference."""
    shown = certificate or {}
    subject = [value for part in shown.get("subject", ()) for name, value in part if name == "commonName"]
    beside = [value for kind, value in shown.get("subjectAltName", ()) if kind == "DNS"]
    return {name.upper() for name in (*subject, *beside)}
