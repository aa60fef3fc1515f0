"""How every process logs: to stderr, with nothing in it that could name a patient."""

from __future__ import annotations

import logging
import traceback
from types import TracebackType

from services.settings import settings

_OURS = ("api", "cli", "imaging", "models", "services", "worker")


def log_to_stderr() -> None:
    """Set up the root logger. What libraries say about a data set may quote it, so that is not let through."""
    handler = logging.StreamHandler()
    handler.setFormatter(_ErrorsWithoutText("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.captureWarnings(True)
    for name in ("py.warnings", "pydicom", "highdicom", "nibabel"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for name in _OURS:
        logging.getLogger(name).setLevel(settings().log_level)
    for name in ("pynetdicom", "alembic", "httpx"):  # each message, each migration plugin, URLs that may hold a secret
        logging.getLogger(name).setLevel(logging.WARNING)


def where_raised(error: BaseException) -> str:
    """Its traceback without its text, which may quote a header, SQL parameters or a file's name."""
    return "".join(traceback.format_tb(error.__traceback__))


class _ErrorsWithoutText(logging.Formatter):
    """Of an exception only its type and where it was raised: its text may quote SQL parameters or a file's name."""

    def formatException(  # noqa: N802  logging's name
        self,
        ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None],
    ) -> str:
        error_type, _, trace = ei
        name = "no exception" if error_type is None else error_type.__name__
        return "".join(traceback.format_tb(trace)) + name
