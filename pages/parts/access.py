"""Who may do what: what the secrets file says of logins and roles.

Without an ``[auth]`` table in Streamlit's ``secrets.toml`` whoever reaches the app may do
everything, and it listens on this machine only. With one, people log in at their OpenID provider,
and ``[roles]`` says by their addresses what they may do. Read once a process: a change to the file
counts from the next start on. In doubt nobody is let in.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from fnmatch import fnmatchcase
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import streamlit as st
from streamlit import config
from streamlit.auth_util import get_redirect_uri
from streamlit.errors import StreamlitSecretNotFoundError

from attribution.records import UserError

LOCAL = ("localhost", "127.0.0.1", "::1")  # what listens there is reached from here only
NEEDED = ("redirect_uri", "cookie_secret", "client_id", "client_secret", "server_metadata_url")
SECRET = 32  # characters of a cookie secret at least: who guesses it can be anybody
UNVERIFIED = "unverified"  # in [roles]: addresses count that the provider did not call verified


class Role(IntEnum):
    """What a visitor may do; each may do what those before it may."""

    NOBODY = 0
    LOOK = 1
    REVIEW = 2
    BUILD = 3


LOOK, REVIEW, BUILD = Role.LOOK, Role.REVIEW, Role.BUILD
NAMES = {role.name.lower(): role for role in (LOOK, REVIEW, BUILD)}
MAY = {
    LOOK: "look at everything and download it",
    REVIEW: "decide on labels and import decisions",
    BUILD: "start, cancel, name and delete builds, and bring images",
}


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What the secrets file says of who gets in."""

    origin: str  # of the app, as browsers see it
    roles: Mapping[Role, tuple[str, ...]] = field(default_factory=dict)  # patterns of addresses
    unverified: bool = False

    @property
    def host(self) -> str:
        return urlsplit(self.origin).hostname or ""

    def role(self, user: Mapping[str, Any]) -> Role:
        """The highest role that a login's claims have; `Role.NOBODY` in doubt."""
        email = address(user)
        if not email or not self.verified(user):
            return Role.NOBODY
        some = [role for role, patterns in self.roles.items() if matches(email, patterns)]
        return max(some, default=Role.NOBODY)

    def verified(self, user: Mapping[str, Any]) -> bool:
        """Whether the provider says that the address is whose login it is."""
        if "email_verified" not in user:
            return self.unverified
        return user["email_verified"] in (True, "true")


def address(user: Mapping[str, Any]) -> str:
    """The address of whoever is logged in; "" where nobody is, or it is none."""
    email = user.get("email")
    if user.get("is_logged_in") is not True or not isinstance(email, str):
        return ""
    name, _, domain = email.partition("@")
    plain = name and domain and "@" not in domain and email.isprintable() and " " not in email
    return lowered(email).decode() if plain else ""


def lowered(text: str) -> bytes:
    """In small ASCII letters; others stay, or a look-alike would become one (K of Kelvin)."""
    return text.encode(errors="replace").lower()


def matches(email: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(lowered(email), lowered(pattern)) for pattern in patterns)


@cache
def rules() -> Rules | None:
    """What the secrets file says; None where no login is configured.

    Raises UserError for a file that cannot be read, or whose words make no sense: then nobody
    gets in.
    """
    files = [Path(name) for name in config.get_option("secrets.files")]
    if not any(file.exists() for file in files):
        return None
    try:
        told = st.secrets.to_dict()
    except (StreamlitSecretNotFoundError, OSError, ValueError) as error:
        raise wrong(f"that cannot be read ({error})", "a file in the form of TOML") from None
    return rules_from(told) if "auth" in told else None


def rules_from(told: Mapping[str, Any]) -> Rules:
    """Rules of a secrets file with ``[auth]``. Raises UserError; no value of it is in its words."""
    auth, roles = told["auth"], told.get("roles", {})
    if not isinstance(auth, Mapping):
        raise wrong("whose auth is no table", "a table [auth]")
    missing = [name for name in NEEDED if not isinstance(auth.get(name), str) or not auth[name]]
    if missing:
        raise wrong(f"whose [auth] lacks {', '.join(missing)}", f"{', '.join(NEEDED)} as texts")
    if len(auth["cookie_secret"]) < SECRET:
        raise wrong("with a short cookie_secret", f"at least {SECRET} random characters")
    redirect = urlsplit(get_redirect_uri(auth) or "")
    if redirect.scheme not in ("http", "https") or redirect.path != "/oauth2callback":
        raise wrong("with another redirect_uri", "the app's address and /oauth2callback")
    if redirect.scheme == "http" and redirect.hostname not in LOCAL:
        raise wrong("whose redirect_uri is http", "https, or logins could be read on their way")
    if not isinstance(roles, Mapping) or (unknown := set(roles) - {*NAMES, UNVERIFIED}):
        named = f" that names {', '.join(sorted(unknown))}" if isinstance(roles, Mapping) else ""
        raise wrong(f"with a [roles]{named}", f"a table of {', '.join(NAMES)}")
    if not isinstance(roles.get(UNVERIFIED, False), bool):
        raise wrong(f"whose {UNVERIFIED} is neither", "true or false")
    lists = {NAMES[name]: given for name, given in roles.items() if name in NAMES}
    if not all(isinstance(p, list) and all(isinstance(q, str) for q in p) for p in lists.values()):
        raise wrong("whose [roles] are no lists", 'lists of addresses such as ["*@example.org"]')
    if find_spec("authlib") is None:
        raise UserError(
            found="a login in secrets.toml, and no Authlib",
            wanted="the library that logs people in",
            next_step="install it with `pip install -e '.[login]'` in the project's folder",
        )
    return Rules(
        origin=f"{redirect.scheme}://{redirect.netloc}",
        roles={role: tuple(patterns) for role, patterns in lists.items()},
        unverified=roles.get(UNVERIFIED, False),
    )


def wrong(found: str, wanted: str) -> UserError:
    return UserError(
        found=f"a secrets.toml {found}",
        wanted=wanted,
        next_step="mend it as docs/SECURITY.md shows and start the app again",
    )


def role() -> Role:
    """What the visitor of this session may do."""
    known = rules()
    return BUILD if known is None else known.role(st.user.to_dict())


def who() -> str:
    """The address that the visitor logged in with; "" where there is no login."""
    return "" if rules() is None else address(st.user.to_dict())


def require(wanted: Role) -> None:
    """Raise UserError unless the visitor may do what `wanted` may."""
    if role() < wanted:
        may_not = "you may not" if who() else "somebody who is not logged in may not"
        raise UserError(
            found=f"{may_not} {MAY[wanted]}",
            wanted=f"the role {wanted.name.lower()}",
            next_step="ask whoever runs this app for it",
        )
