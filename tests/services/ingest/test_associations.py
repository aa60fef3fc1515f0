"""Who may open an association with the listener, and over what."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pynetdicom.association import Association

from imaging.errors import ConfigurationError
from services.ingest.intake_rules import AssociationRules, IntakeRules
from services.ingest.known_peers import KnownPeers
from services.requestor import Requestor
from services.settings import Settings
from services.store.database import Database
from services.transport_security import listener_context
from tests.faults.hostile_dicom import ACCEPT, HostilePeer, store_command
from tests.services.certificates import Authority, Credentials
from tests.services.ingest.peers import EVERYBODY, Receiving, ct_series, save, wait_until

Start = Callable[..., Receiving]


@pytest.fixture
def start(settings: Settings, database: Database) -> Iterator[Start]:
    running: list[Receiving] = []

    def started(
        associations: AssociationRules = EVERYBODY, *, associations_as_shipped: bool = False, **changed: object
    ) -> Receiving:
        rules = IntakeRules(min_slices=2, associations=associations)
        how = {"associations_as_shipped": associations_as_shipped}
        running.append(Receiving(settings.model_copy(update=changed), database, rules, **how))
        return running[-1]

    yield started
    for one in running:
        one.stop()


def associate(port: int, *, calling: str = "CT1", called: str = "EMBOLENS") -> Association:
    ae = Requestor(ae_title=calling)
    ae.add_requested_context("1.2.840.10008.1.1")
    opened = ae.associate("127.0.0.1", port, ae_title=called)
    if opened.is_established:
        opened.release()
    return opened


def test_ae_titles_and_addresses_that_are_not_allowed_are_rejected(start: Start) -> None:
    receiving = start(AssociationRules(calling_ae_titles=("CT1", "CT2")))
    assert associate(receiving.port).is_released
    assert associate(receiving.port, calling="CT2").is_released
    assert associate(receiving.port, calling="STRANGER").is_rejected
    assert associate(receiving.port, called="ANOTHER").is_rejected
    lenient = start(AssociationRules(calling_ae_titles=("CT1",), called_ae_title_must_match=False))
    assert associate(lenient.port, called="ANOTHER").is_released
    elsewhere = start(AssociationRules.model_validate({"promiscuous": True, "addresses": ["10.0.0.0/8", "192.0.2.7"]}))
    assert associate(elsewhere.port).is_rejected
    here = start(AssociationRules.model_validate({"promiscuous": True, "addresses": ["192.0.2.7", "127.0.0.0/8"]}))
    assert associate(here.port).is_released


def test_without_a_rule_nobody_comes_in(start: Start, tmp_path: Path) -> None:
    destinations = tmp_path / "destinations.toml"
    destinations.write_text("")
    receiving = start(AssociationRules(calling_ae_titles=()), associations_as_shipped=True, destinations=destinations)
    assert associate(receiving.port).is_rejected
    assert associate(receiving.port, calling="EMBOLENS").is_released  # this machine's own health check
    destinations.write_text('[[nodes]]\nae_title = "CT1"\nhost = "localhost"\nport = 104\n')
    assert associate(receiving.port).is_released
    destinations.write_text("[[nodes")
    assert associate(receiving.port).is_released


def test_a_node_has_to_come_from_its_host(start: Start, tmp_path: Path) -> None:
    destinations = tmp_path / "destinations.toml"
    nodes = {"HERE": "127.0.0.1", "ELSEWHERE": "192.0.2.7", "NOWHERE": "pacs.invalid", "NONAME": "pacs..lan"}
    destinations.write_text(
        "".join(f'[[nodes]]\nae_title = "{name}"\nhost = "{host}"\nport = 104\n' for name, host in nodes.items())
    )
    strict = start(AssociationRules(), associations_as_shipped=True, destinations=destinations)
    assert associate(strict.port, calling="HERE").is_released
    elsewhere, nowhere, no_name = (associate(strict.port, calling=name) for name in ("ELSEWHERE", "NOWHERE", "NONAME"))
    assert (elsewhere.is_rejected, elsewhere.acceptor.primitive.result) == (True, 1)
    assert (nowhere.is_rejected, nowhere.acceptor.primitive.result) == (True, 2)  # a name server may be away
    assert (no_name.is_rejected, no_name.acceptor.primitive.result) == (True, 2)
    named = start(AssociationRules(calling_ae_titles=("ELSEWHERE",)), destinations=destinations)
    assert associate(named.port, calling="ELSEWHERE").is_released
    translated = start(AssociationRules(nodes_come_from_their_host=False), destinations=destinations)
    assert associate(translated.port, calling="ELSEWHERE").is_released
    assert associate(translated.port, calling="STRANGER").is_rejected


@pytest.mark.fault(
    "DICOM associations",
    "an error of ours while a request for an association is judged",
    "the peer is rejected: nobody comes in unjudged",
)
def test_who_cannot_be_judged_is_rejected(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    receiving = start()
    assert associate(receiving.port).is_released
    monkeypatch.setattr(KnownPeers, "refusal", lambda *_: 1 // 0)
    rejected = associate(receiving.port)
    assert (rejected.is_rejected, rejected.acceptor.primitive.result) == (True, 2)


def test_who_breaks_off_in_the_middle_of_an_instance_is_forgotten(start: Start) -> None:
    receiving = start()
    in_hand = receiving.listener._drain._in_hand
    peer = HostilePeer(receiving.port)
    assert peer.associate()[:1] == ACCEPT
    peer.send(store_command(ct_series(1)[0]))
    wait_until(lambda: in_hand)
    peer.close()
    wait_until(lambda: not in_hand)


def test_an_ae_title_with_a_treatment_of_its_own_is_known(settings: Settings) -> None:
    rules = IntakeRules.model_validate({"calling_ae_titles": {"named": {"ER_CT1": "stat"}}})
    peers = KnownPeers(rules, settings)
    assert peers.refusal("ER_CT1", "192.0.2.9", "192.0.2.1", None) is None
    assert peers.refusal("ER_CT2", "192.0.2.9", "192.0.2.1", None) is not None


@pytest.mark.parametrize(
    ("host", "promiscuous", "warning"),
    [("0.0.0.0", True, "PROMISCUOUS"), ("127.0.0.1", True, ""), ("0.0.0.0", False, "nobody may open")],
)
def test_a_listener_that_is_open_or_closed_to_all_says_so(
    settings: Settings, caplog: pytest.LogCaptureFixture, host: str, promiscuous: bool, warning: str
) -> None:
    rules = IntakeRules(associations=AssociationRules(promiscuous=promiscuous))
    KnownPeers(rules, settings.model_copy(update={"dicom_host": host})).warn_of_open_doors()
    assert warning in caplog.text
    assert bool(caplog.text) == bool(warning)


def test_networks_hold_addresses_of_both_families() -> None:
    rules = AssociationRules.model_validate({"addresses": ["10.1.0.0/16", "fd00::/8"]})
    assert [rules.allow_address(one) for one in ("10.1.9.9", "::ffff:10.1.2.3", "fd12::1%eth0", "10.2.0.1", "::1")] == [
        True, True, True, False, False,
    ]  # fmt: skip


def storescu(port: int, slices: list[Dataset], folder: Path, *options: str) -> int:
    """dcmtk's exit status."""
    files = [str(path) for path in save(slices, folder)]
    command = ["storescu", "-to", "10", "-ta", "10", *options, "-aec", "EMBOLENS", "127.0.0.1", str(port), *files]
    return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode


def shown(credentials: Credentials) -> tuple[str, ...]:
    return "+tls", str(credentials.key), str(credentials.certificate)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


def test_dcmtk_pushes_over_tls_and_is_asked_for_its_certificate(
    start: Start, authority: Authority, tmp_path: Path
) -> None:
    own = authority.issue("embolens")
    receiving = start(tls_certificate=own.certificate, tls_key=own.key, tls_trusted=authority.certificate)
    trusts = ("+cf", str(authority.certificate))
    slices = ct_series(3)
    assert storescu(receiving.port, slices, tmp_path / "a", *shown(authority.issue("ct1")), *trusts) == 0
    (job,) = receiving.wait_for_state(slices[0], "queued")
    assert job.instance_count == 3
    stranger = Authority(tmp_path / "other", "Other CA").issue("stranger")
    for name, options in (("plain", ()), ("anonymous", ("+tla", *trusts)), ("stranger", (*shown(stranger), *trusts))):
        refused = ct_series(2)
        assert storescu(receiving.port, refused, tmp_path / name, *options) != 0, name
        assert receiving.jobs_of(refused[0]) == [], name


def test_a_certificate_has_to_name_the_ae_title_where_that_is_asked_for(
    start: Start, authority: Authority, tmp_path: Path
) -> None:
    own = authority.issue("embolens")
    tls = {"tls_certificate": own.certificate, "tls_key": own.key, "tls_trusted": authority.certificate}
    receiving = start(AssociationRules(promiscuous=True, certificate_names_ae_title=True), **tls)
    ct1 = (*shown(authority.issue("ct1")), "+cf", str(authority.certificate))
    assert storescu(receiving.port, ct_series(2), tmp_path / "own", *ct1, "-aet", "CT1") == 0
    assert storescu(receiving.port, ct_series(2), tmp_path / "other", *ct1, "-aet", "CT2") != 0


def test_without_trusted_certificates_everybody_may_come_encrypted(
    start: Start, authority: Authority, tmp_path: Path
) -> None:
    own = authority.issue("embolens")
    receiving = start(tls_certificate=own.certificate, tls_key=own.key)
    slices = ct_series(2)
    assert storescu(receiving.port, slices, tmp_path / "a", "+tla", "+cf", str(authority.certificate)) == 0
    receiving.wait_for_state(slices[0], "queued")


# The listener stops while pynetdicom still waits for that peer's first word, which it takes for an impossible event.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_peer_that_never_speaks_keeps_nobody_waiting(start: Start, authority: Authority, tmp_path: Path) -> None:
    own = authority.issue("embolens")
    receiving = start(tls_certificate=own.certificate, tls_key=own.key)
    with socket.create_connection(("127.0.0.1", receiving.port)):
        slices = ct_series(2)
        assert storescu(receiving.port, slices, tmp_path / "a", "+tla", "+cf", str(authority.certificate)) == 0


def test_versions_of_tls_before_1_2_are_refused(start: Start, authority: Authority) -> None:
    own = authority.issue("embolens")
    receiving = start(tls_certificate=own.certificate, tls_key=own.key)
    for version, accepted in (("-tls1_1", False), ("-tls1_2", True), ("-tls1_3", True)):
        finished = subprocess.run(
            ["openssl", "s_client", version, "-cipher", "ALL:@SECLEVEL=0", "-connect", f"127.0.0.1:{receiving.port}"],
            input=b"", capture_output=True, timeout=30, check=False,
        )  # fmt: skip
        assert (b"Cipher is (NONE)" not in finished.stdout) == accepted, version


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_certificate_that_cannot_be_read_is_named(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "embolens.pem"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigurationError, match=r"embolens\.pem"):
        listener_context(Settings(tls_certificate=file))
