"""Which requests web pages make through a browser of this machine. Listening on loopback does not keep those out."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from ocistream.http.origins import is_loopback

if TYPE_CHECKING:
    from email.message import Message

__all__ = ["is_from_web_page"]

#: The values of `Sec-Fetch-Site` that no page of another site can cause: the user typed the address, or the page
#: came from here. A page of another port of this machine is "same-site".
_TRUSTED_FETCH_SITES: Final = frozenset({"none", "same-origin"})


def is_from_web_page(headers: Message, *, has_password: bool) -> bool:
    """Return whether a page of another site makes the request, or may do so.

    A navigation from another site is refused as well: none of what is served is a page for people. With a password
    the name of the host does not matter: a page under a rebound name does not know the password.
    """
    if "Origin" in headers or headers.get("Sec-Fetch-Site", "none").strip().lower() not in _TRUSTED_FETCH_SITES:
        return True
    return not has_password and _is_dns_rebinding(headers)


def _is_dns_rebinding(headers: Message) -> bool:
    """Return whether a browser asks under a name that is not this machine's own (DNS rebinding).

    For such a page it is a request to the page's own origin, which a GET does not show; but every browser sends
    `Accept-Language`.
    """
    if "Accept-Language" not in headers:
        return False
    host = re.sub(r":[0-9]*\Z", "", headers.get("Host", "").strip()).strip("[]")
    return not is_loopback(host.lower())
