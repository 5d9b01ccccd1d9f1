"""How a client is admitted by a server: user, token, credentials, and the certificates of TLS."""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING, NamedTuple

from tokentrace.errors import ConfigError, Unavailable

if TYPE_CHECKING:
    from ssl import SSLContext


class Access(NamedTuple):
    """
    What admits a client to a server, beside what the URL says; "" = not given.

    Attributes:
        user, password: Instead of those in the URL.
        token: A token of NATS, or the bearer token of HTTP.
        creds: Path of a NATS credentials file, which holds a JWT and a seed.
        nkey: Path of a file with the seed of a NATS key.
        ca: Path of a file with the certificates of authorities that are trusted, instead of those of the system; PEM.
        cert, key: Paths of files with the certificate of the client and its private key; PEM. The key may be in *cert*.
    """

    user: str = ""
    password: str = ""
    token: str = ""
    creds: str = ""
    nkey: str = ""
    ca: str = ""
    cert: str = ""
    key: str = ""

    def __repr__(self) -> str:
        """Name what is given, without its values."""
        return f"Access({', '.join(field for field, value in zip(self._fields, self, strict=True) if value)})"


def check_access(access: Access) -> None:
    """
    Check that *access* is complete and that its files can be read.

    Raises:
        ConfigError: A file cannot be read, a part is missing, two ways exclude each other, or the package nkeys, which
            ``creds`` and ``nkey`` need, is not installed.
    """
    ways = [
        name
        for name, given in (
            ("user", access.user),
            ("token", access.token),
            ("creds", access.creds),
            ("nkey", access.nkey),
        )
        if given
    ]
    if len(ways) > 1:
        raise ConfigError(f"{' and '.join(ways)} are given, of which a connection uses only one")
    if access.password and not access.user:
        raise ConfigError("password: there is no user to whom it belongs")
    if access.key and not access.cert:
        raise ConfigError("key: there is no cert to which it belongs")
    for name, path in (
        ("creds", access.creds),
        ("nkey", access.nkey),
        ("ca", access.ca),
        ("cert", access.cert),
        ("key", access.key),
    ):
        if path and not (os.path.isfile(path) and os.access(path, os.R_OK)):
            raise ConfigError(f"{name}: {path} is not a file that can be read")
    if (access.creds or access.nkey) and importlib.util.find_spec("nkeys") is None:
        raise ConfigError("creds and nkey need the package nkeys: pip install 'tokentrace[nkeys]'")


def tls_context(access: Access) -> SSLContext | None:
    """
    Return the TLS settings with the files of *access*; None = it has none, so the usual settings hold.

    Raises:
        Unavailable: A file cannot be read or holds no certificate. It may have been replaced, so it is read each time.
    """
    if not (access.ca or access.cert):
        return None
    import ssl

    try:
        context = ssl.create_default_context(cafile=access.ca or None)
        if access.cert:
            context.load_cert_chain(access.cert, access.key or None)
    except (OSError, ValueError) as exc:
        files = ", ".join(path for path in (access.ca, access.cert, access.key) if path)
        raise Unavailable(f"the certificates in {files} cannot be used: {exc}") from exc
    return context
