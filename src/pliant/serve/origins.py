"""`Origins`: which web pages may use a server, beside its own.

A page from anywhere may make its reader's browser send requests to this machine. It cannot read the
answers, but they cost; and where its own name is made to point here (DNS rebinding) it can. A key
is what such a page does not have, so this matters to servers without keys.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from pliant.errors import UsageError
from pliant.serve.api.errors import ApiError

#: Names that no stranger can own; others without a dot are of the machine's own network.
_OWN_SUFFIXES = (".localhost", ".local", ".internal", ".home.arpa")
#: Headers of answers that an allowed page may read.
_SHOWN = ("X-Request-Id", "X-Pliant-Subnet", "Retry-After", "Warning")


class Origins:
    """Pages that are allowed, as `https://chat.example.org`; `UsageError` for what is no origin."""

    def __init__(self, allowed: Iterable[str] = ()) -> None:
        self.allowed = tuple(origin.rstrip("/").lower() for origin in allowed)
        for origin in self.allowed:
            parts = urlsplit(origin)
            if (
                parts.scheme not in ("http", "https")
                or f"{parts.scheme}://{parts.netloc}" != origin
            ):
                raise UsageError(
                    f"{origin!r} is no origin of pages; write one like https://chat.example.org."
                )
        self._hosts = {urlsplit(origin).hostname for origin in self.allowed}

    def check(self, host: str, origin: str) -> None:
        """Refuse a request without a key by its `Host` and `Origin`; "" where it has none.

        `ApiError` 403 where another page sent it, or one that reached here by a name of its own.
        """
        # No page sends a request without both.
        if host and not self._is_own(_name(host)):
            raise ApiError(403, f"This server has no keys and is not known as {host!r}; start it "
                           "with --keys, or with --allow-origin of pages of that name.",
                           code="unknown_host")  # fmt: skip
        own = (f"http://{host}".lower(), f"https://{host}".lower())
        if origin and origin.lower() not in (*own, *self.allowed):
            raise ApiError(403, f"Pages of {origin!r} may not use this server; start it with "
                           "--allow-origin of them.", code="origin_not_allowed")  # fmt: skip

    def around(self, app: Any) -> Any:
        """The application with answers that browsers show to the allowed pages (CORS)."""
        if not self.allowed:
            return app
        from starlette.middleware.cors import CORSMiddleware

        return CORSMiddleware(
            app,
            allow_origins=self.allowed,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=_SHOWN,
        )

    def _is_own(self, name: str) -> bool:
        if "." not in name or name.endswith(_OWN_SUFFIXES) or name in self._hosts:
            return True
        try:
            return bool(ipaddress.ip_address(name))
        except ValueError:
            return False


def _name(host: str) -> str:
    """A `Host` header without its port, in lower case."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower().rstrip(".")
