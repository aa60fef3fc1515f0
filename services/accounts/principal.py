"""Who calls, what they may do, and whose studies they see."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from imaging.errors import ConfigurationError
from services.store.rows import DEFAULT_TENANT, TENANT_LENGTH

_TENANT = re.compile(rf"[a-z0-9][a-z0-9_-]{{0,{TENANT_LENGTH - 1}}}")  # safe as the name of a directory


class Scope(StrEnum):
    """What a caller may do. `metrics` sees figures of all tenants and no study; `admin` may do all, everywhere."""

    READ = "read"
    SUBMIT = "submit"
    METRICS = "metrics"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated caller.

    Attributes:
        name: of the API key, or "oidc:" and the subject of a token; never a secret.
        tenant: whose studies it sends and sees.
        max_upload_bytes: of one upload; None: the gateway's own limit.
    """

    name: str
    tenant: str
    scopes: frozenset[Scope]
    max_upload_bytes: int | None = None

    def has(self, scope: Scope) -> bool:
        return scope in self.scopes or Scope.ADMIN in self.scopes

    @property
    def sees_tenant(self) -> str | None:
        """The one tenant whose studies it sees; None: those of all."""
        return None if Scope.ADMIN in self.scopes else self.tenant

    def sees(self, tenant: str) -> bool:
        return self.sees_tenant in (None, tenant)


UNAUTHENTICATED = Principal("local", DEFAULT_TENANT, frozenset(Scope))
"""Everybody, where authentication is switched off."""


def is_tenant(name: str) -> bool:
    """Whether this can be the name of a tenant."""
    return _TENANT.fullmatch(name) is not None


def checked_tenant(name: str) -> str:
    """Raises ConfigurationError: no possible name of a tenant."""
    if not is_tenant(name):
        raise ConfigurationError(
            f"tenant {name!r}",
            code="tenant.invalid",
            remedy=f"use up to {TENANT_LENGTH} lower-case letters, digits, - and _",
        )
    return name
