"""Settings of every process: one table, read from `EMBOLENS_*` environment variables."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.chosen_package import chosen_package
from services.dicom.seg_options import SegOptions, SegType
from services.store.durability import Durability

_DEPLOY = Path(__file__).resolve().parents[1] / "deploy"
GIB = 1024**3


class Settings(BaseSettings):
    """One field, one variable: `data_dir` is `EMBOLENS_DATA_DIR`. Durations are in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(env_prefix="EMBOLENS_", env_ignore_empty=True, extra="ignore", frozen=True)

    data_dir: Path = Field(Path(".embolens"), description="Studies, results and the default database")
    database_url: str = Field("", description="SQLAlchemy URL; empty: SQLite (WAL) in the data directory")
    redis_url: str = Field("", description="Broker; empty: `embolens serve` starts an embedded Redis")
    package_dir: Path | None = Field(
        None, description="Model package; empty: what `embolens models use` chose, else the one shipped"
    )

    durability: Durability = Field(
        Durability.PROCESS, description="What is acknowledged survives: process (kill -9) or power (fsync before it)"
    )
    disk_reserve_bytes: int = Field(
        2 * GIB,
        description="Nothing new is taken in where less would stay free for results and the database; "
        "at most 5 % of the disk",
    )

    gateway_host: str = Field("127.0.0.1", description="Address the gateway binds to")
    gateway_port: int = Field(8000, description="Port of the gateway; 0: chosen by the system")
    gateway_url: str = Field("", description="Public base URL in Location headers; empty: they are relative")
    authentication: bool = Field(
        True, description="Ask every client for a key or token; can be switched off on loopback alone"
    )
    oidc_issuer: str = Field("", description="Issuer of bearer tokens (OpenID Connect); empty: API keys alone")
    oidc_audience: str = Field("", description="What a token's `aud` must name: us")
    oidc_scope_claim: str = Field("scope", description="Claim with what a token permits; a dot leads into an object")
    oidc_scope_prefix: str = Field("embolens.", description="Stands there before `read`, `submit` and `admin`")
    oidc_tenant_claim: str = Field("", description="Claim with a token's tenant; empty: all are of `default`")
    session_s: float = Field(28_800.0, description="A browser stays logged in for this long")
    requests_per_second: float = Field(100.0, description="Of one client on average; 0: any number")
    requests_at_once: int = Field(1000, description="Requests of one client that may come at once")
    failed_logins_per_minute: float = Field(30.0, description="Of one address; more are not looked at; 0: any number")
    upload_max_bytes: int = Field(5 * GIB, description="Largest upload")
    unpacked_max_bytes: int = Field(8 * GIB, description="Largest sum of what an archive unpacks to")
    unpacked_max_ratio: float = Field(
        200.0,
        description="Most that an archive may unpack to, as a multiple of its size; up to 64 MiB are always taken",
    )
    upload_max_files: int = Field(20_000, description="Most files in one upload")
    convert_at_once: int = Field(2, description="Conversions (`POST /convert`) at once; more wait")
    convert_memory_bytes: int = Field(12 * GIB, description="Most address space of one conversion")
    convert_timeout_s: float = Field(600.0, description="A conversion is ended after this")

    ae_title: str = Field("EMBOLENS", description="Our AE title, as acceptor and as requestor")
    dicom_host: str = Field("127.0.0.1", description="Address the listener binds to")
    dicom_port: int = Field(11112, description="Port of the listener")
    max_associations: int = Field(50, description="Associations served at once")
    dicom_receivers: int = Field(
        4,
        ge=0,
        description="Processes that receive instances for the listener, each from one association at a time; an "
        "association over TLS, or one that finds none free, is received by the listener's own process",
    )
    network_timeout_s: float = Field(
        60.0, description="A DICOM peer that is silent for this long, or that takes as long for one PDU, is cut off"
    )
    instance_max_bytes: int = Field(4 * GIB, description="Longest data set of a C-STORE; a longer one is cut off")
    series_quiet_s: float = Field(20.0, description="A series without an open association is complete after this")
    series_released_quiet_s: float = Field(
        1.0, description="The same, where it came in one sending that was released in order and is a whole chest"
    )
    series_longest_wait_s: float = Field(
        600.0, description="A quiet series of which slices are known to be missing waits for them up to this"
    )
    intake_rules: Path = Field(_DEPLOY / "intake.toml", description="What is segmented, what is set aside")
    destinations: Path = Field(_DEPLOY / "destinations.toml", description="Known DICOM nodes, folders and routes")

    retrieve_at_once: int = Field(2, description="Retrievals that run at once")
    retrieve_first_backoff_s: float = Field(30.0, description="Wait after a first failed retrieval; doubles")
    retrieve_max_backoff_s: float = Field(600.0, description="Longest wait between two attempts of a retrieval")
    retrieve_max_attempts: int = Field(20, description="A retrieval is tried this often before it is failed")

    tls_certificate: Path | None = Field(
        None, description="PEM certificate chain; the listener then speaks TLS only, senders show it when asked"
    )
    tls_key: Path | None = Field(None, description="PEM key of the certificate; empty: in the same file")
    tls_trusted: Path | None = Field(
        None, description="PEM certificates whose holders may connect, and by which nodes are checked"
    )

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Of our own messages on stderr; libraries, which may quote a data set, say only warnings"
    )
    queue_max_jobs: int = Field(
        2000,
        description="With so many waiting, uploads, STOW-RS and `/retrieve` get 503 (C-STORE never); 0: no bound",
    )
    routine_longest_wait_s: float = Field(
        1800.0, description="A routine study that has waited longer starts after at most four STAT studies"
    )
    audit_key_file: Path | None = Field(None, description="Key that signs the audit trail's lines (HMAC-SHA-256)")
    audit_syslog: str = Field(
        "", description="HOST:PORT of a syslog server over TLS that gets the audit messages (RFC 5425)"
    )

    worker_threads: int = Field(0, description="CPU threads of one worker; 0: all cores")
    worker_device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    inference_backend: Literal["auto", "torch", "openvino"] = Field(
        "auto", description="Who runs the networks: auto is OpenVINO on CPUs with bf16 instructions, else torch"
    )
    worker_memory_bytes: int = Field(
        0, description="Most memory that a job may take beside the networks; 0: what the machine or its container has"
    )
    job_timeout_s: float = Field(3600.0, description="An attempt at a job that takes longer is ended")
    lease_s: float = Field(30.0, description="A running job whose worker is silent for this long is given to another")
    worker_drain_s: float = Field(
        240.0, description="A worker that is told to end (SIGTERM) finishes its job within this, or hands it back"
    )
    max_attempts: int = Field(3, description="A job is tried this often before it is failed")
    sweep_s: float = Field(5.0, description="Time between two sweeps of the relay")

    seg_type: SegType = Field(SegType.BINARY, description="binary, labelmap (many archives refuse it) or fractional")
    seg_artery: bool = Field(
        True, description="Pulmonary artery in the SEG; without it no SEG where no embolus was found"
    )

    delivery_first_backoff_s: float = Field(30.0, description="Wait after a first failed delivery; doubles")
    delivery_max_backoff_s: float = Field(600.0, description="Longest wait between two delivery attempts")
    delivery_park_after_s: float = Field(86_400.0, description="Failing this long, and 20 times, parks a delivery")

    retention_input_days: float = Field(
        0, description="Inputs of ended jobs are purged after this, where all is delivered; 0: never by age"
    )
    retention_result_days: float = Field(0, description="Results likewise; findings stay in the database")
    purge_at_percent: float = Field(
        0, description="Above so much of the disk in use, what is delivered is purged, oldest first; 0: never"
    )
    purge_to_percent: float = Field(80, description="Until so much of the disk is in use")

    @property
    def resolved_database_url(self) -> str:
        return self.database_url or f"sqlite:///{self.data_dir.resolve() / 'embolens.sqlite'}"

    @property
    def seg_options(self) -> SegOptions:
        return SegOptions(self.seg_type, self.seg_artery)

    @property
    def packages_folder(self) -> Path:
        """Where model packages of this site lie, beside those that are shipped."""
        return self.data_dir / "packages"

    @property
    def resolved_package_dir(self) -> Path | None:
        """The model package to load; None: the shipped one. Raises ConfigurationError where the chosen one is gone."""
        return self.package_dir or chosen_package(self.data_dir)


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The process's settings, read once from the environment."""
    return Settings()
