"""The Dockerfile and the compose file, checked without an engine: schema, lint, contract."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from redis import AuthenticationError, Redis
from ruamel.yaml import YAML

from services.embedded_redis import free_port

REPOSITORY = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
COMPOSE_FILES = ("docker-compose.yml", "deploy/docker-compose.gpu.yml")
OURS = ("gateway", "listener", "worker", "relay")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = YAML(typ="safe").load(REPOSITORY / "docker-compose.yml")
    return loaded


@pytest.fixture(scope="module")
def stages() -> dict[str, str]:
    """The text of each stage of the Dockerfile by its name."""
    parts = re.split(r"^FROM (\S+) AS (\S+)$", (REPOSITORY / "Dockerfile").read_text(), flags=re.MULTILINE)
    return {name: f"FROM {base}{text}" for base, name, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True)}


@pytest.mark.parametrize("file", COMPOSE_FILES)
def test_the_compose_files_are_what_compose_understands(file: str) -> None:
    check = [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", REPOSITORY / file]
    checked = subprocess.run(check, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_hadolint_has_nothing_to_say() -> None:
    checked = subprocess.run([BIN / "hadolint", REPOSITORY / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout) == (0, "")


def test_all_services_are_there(compose: dict[str, Any]) -> None:
    assert set(compose["services"]) == {*OURS, "redis", "postgres"}
    assert set(compose["volumes"]) == {"data", "redis", "postgres"}


def test_every_service_has_a_health_check_and_comes_back_after_a_crash(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        assert service["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
        assert service["restart"] == "unless-stopped"


def test_the_worker_can_be_scaled(compose: dict[str, Any]) -> None:
    worker = compose["services"]["worker"]
    assert not {"container_name", "hostname", "ports"} & set(worker)


def test_nothing_is_published_beyond_this_machine_unless_asked_for(compose: dict[str, Any]) -> None:
    published = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert len(published) == 2
    assert all(port.startswith("${EMBOLENS_PUBLISH_ADDRESS:-127.0.0.1}:") for port in published)


def test_there_is_no_default_password(compose: dict[str, Any]) -> None:
    text = (REPOSITORY / "docker-compose.yml").read_text()
    for name in ("POSTGRES_PASSWORD", "REDIS_PASSWORD"):
        uses = re.findall(rf"\$\{{{name}[^}}]*\}}", text)
        assert len(uses) == 2
        assert all(use.startswith(f"${{{name}:?") for use in uses)


def test_redis_asks_for_its_password_and_is_healthy_with_it(compose: dict[str, Any], tmp_path: Path) -> None:
    """The compose file's own command, on a port and in a directory of this test."""
    service, password, port = compose["services"]["redis"], "of-this-test-alone", free_port()
    *shell, script = service["command"]
    script = script.replace("$$", "$").replace("redis-server -", f"redis-server - --port {port} --bind 127.0.0.1")
    environment = {"PATH": os.environ["PATH"], "REDISCLI_AUTH": password}
    _, check = service["healthcheck"]["test"]
    check = check.replace("redis-cli", f"redis-cli -p {port}")
    server = subprocess.Popen([*shell, script], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while subprocess.run(["sh", "-c", check], env=environment, capture_output=True, check=False).returncode:
            assert time.monotonic() < deadline, "redis did not become healthy"
            time.sleep(0.05)
        assert password not in Path(f"/proc/{server.pid}/cmdline").read_text()
        with pytest.raises(AuthenticationError):
            Redis(port=port).ping()
    finally:
        server.terminate()
        assert server.wait(timeout=20) == 0


WRITABLE = {
    **dict.fromkeys(OURS, "data:/var/lib/embolens"),
    "redis": "redis:/data",
    "postgres": "postgres:/var/lib/postgresql/data",
}


@pytest.mark.parametrize("name", WRITABLE)
def test_a_container_has_no_privilege_and_writes_one_volume(name: str, compose: dict[str, Any]) -> None:
    service = compose["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "pid", "network_mode", "devices"} & set(service)
    assert [volume for volume in service["volumes"] if not volume.endswith(":ro")] == [WRITABLE[name]]


def test_every_container_is_looked_at_and_none_is_root(compose: dict[str, Any]) -> None:
    """Ours have their user from the Dockerfile (below), the images of others from the compose file."""
    users = {name: service.get("user") for name, service in compose["services"].items()}
    assert users == {**dict.fromkeys(OURS), "redis": "redis", "postgres": "postgres"}
    assert set(WRITABLE) == set(users)


def test_services_wait_for_database_and_broker(compose: dict[str, Any]) -> None:
    for name in OURS:
        needed = compose["services"][name]["depends_on"]
        assert needed == {"postgres": {"condition": "service_healthy"}, "redis": {"condition": "service_healthy"}}


def test_all_but_the_worker_share_the_small_image(compose: dict[str, Any]) -> None:
    targets = {name: compose["services"][name]["build"]["target"] for name in OURS}
    assert targets == {"gateway": "gateway", "listener": "gateway", "relay": "gateway", "worker": "worker"}


@pytest.mark.parametrize("target", ["gateway", "worker"])
def test_images_run_as_a_numbered_user_with_a_health_check(target: str, stages: dict[str, str]) -> None:
    assert re.search(r"^USER 10001:10001$", stages[target], re.MULTILINE)
    assert "HEALTHCHECK" in stages[target]
    assert stages[target].startswith("FROM application")
    assert "RUN" not in stages[target]  # packages come from a stage that stays behind


def test_the_gateway_image_holds_neither_torch_nor_networks(stages: dict[str, str]) -> None:
    assert "COPY models" not in stages["gateway"]
    assert "COPY worker" not in stages["gateway"]
    locked = re.findall(r"^([\w.-]+)==", (REPOSITORY / "requirements-gateway.lock").read_text(), re.MULTILINE)
    assert locked
    assert not {"torch", "simpleitk", "safetensors"} & {name.lower() for name in locked}


def test_every_package_the_images_import_is_copied_into_them(stages: dict[str, str]) -> None:
    copied = set(re.findall(r"^COPY (\w+) /app/\1$", (REPOSITORY / "Dockerfile").read_text(), re.MULTILINE))
    assert copied == {"imaging", "services", "migrations", "cli", "models", "worker", "api"}


def test_gateway_listener_and_relay_import_nothing_beyond_their_lock_file() -> None:
    """Imports, in a fresh interpreter that has no package of the worker's image, neither foreign nor ours."""
    ours = ("models", "worker", "training")
    forbidden = (
        *ours,
        "torch",
        "safetensors",
        "highdicom",
        "SimpleITK",
        "gdcm",
        "pylibjpeg",
        "jpeg_ls",
        "skimage",
        "cv2",
    )
    program = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {forbidden!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
import api.server, services.ingest.listener, services.delivery.relay, cli.app, cli.supervisor
"""
    subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, check=True, timeout=60)
