"""What a process imports before it is ready: every large library that it can do without costs seconds of each start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from services.store.database import Database

ROOT = Path(__file__).parents[2]
# Not by the top of their names: of scipy, for one, nibabel looks up whether it is there.
LARGE = (
    "torch",
    "SimpleITK",
    "highdicom",
    "scipy.ndimage",
    "cc3d",
    "matplotlib",
    "alembic.command",
    "celery.app.base",
    "httpx",
    "websockets",
)


def imported(code: str, database: Path) -> list[str]:
    """Those of the large modules that are there after the code, run in a new process."""
    tell = f"\nimport sys; print(*[name for name in {LARGE!r} if name in sys.modules])"
    opened = (
        "\nfrom services.store.database import Database; from services.task_queue import TaskQueue"
        f"\nDatabase('sqlite:///{database}').upgrade(); TaskQueue('redis://127.0.0.1:1/0')"
    )
    run = [sys.executable, "-c", code + opened + tell]
    return subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("schema") / "embolens.sqlite"
    database = Database(f"sqlite:///{path}")
    database.upgrade()
    database.close()
    return path


@pytest.mark.parametrize("module", ["api.server", "services.ingest.listener", "services.delivery.relay"])
def test_a_process_that_does_not_compute_starts_without_the_large_libraries(module: str, schema: Path) -> None:
    assert imported(f"import {module}", schema) == []


def test_the_worker_imports_torch_in_the_process_of_its_pool_alone(schema: Path) -> None:
    assert "torch" not in imported("import worker.app", schema)


def test_a_schema_that_is_not_there_or_older_is_brought_up(tmp_path: Path) -> None:
    path = tmp_path / "embolens.sqlite"
    assert imported("", path) == ["alembic.command"]
    assert imported("", path) == []
    database = Database(f"sqlite:///{path}")
    database.downgrade("0008")
    database.close()
    assert imported("", path) == ["alembic.command"]


def test_what_a_start_makes_is_looked_through_by_no_collection() -> None:
    code = (
        "import gc; from services.process_start import without_collections\n"
        "with without_collections():\n"
        "    before = sum(one['collections'] for one in gc.get_stats()); import sqlalchemy.orm\n"
        "    after = sum(one['collections'] for one in gc.get_stats())\n"
        "print(after - before, gc.get_freeze_count() > 10_000, gc.isenabled())"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["0", "True", "True"]
