"""Made-up credentials for tests: keys and JWTs of NATS, and certificates for 127.0.0.1."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import nkeys


class Key(NamedTuple):
    """A key of NATS: its seed and its public form."""

    seed: str
    public: str


def make_key(kind: int) -> Key:
    """Return a new key; *kind* is ``nkeys.PREFIX_BYTE_…``."""
    seed = bytearray(nkeys.encode_seed(os.urandom(32), kind))
    text = seed.decode()
    return Key(text, nkeys.from_seed(seed).public_key.decode())


def _coded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _jwt(subject: str, issuer: Key, name: str, claims: dict[str, Any]) -> str:
    body = {"jti": name, "iat": 1_700_000_000, "iss": issuer.public, "name": name, "sub": subject, "nats": claims}
    head = {"typ": "JWT", "alg": "ed25519-nkey"}
    text = ".".join(_coded(json.dumps(part).encode()) for part in (head, body))
    signature = nkeys.from_seed(bytearray(issuer.seed.encode())).sign(text.encode())
    return f"{text}.{_coded(signature)}"


def operator_mode(creds: Path) -> str:
    """Write the credentials of a user to *creds* and return the lines of a configuration that admit it."""
    operator, account, user = (
        make_key(kind) for kind in (nkeys.PREFIX_BYTE_OPERATOR, nkeys.PREFIX_BYTE_ACCOUNT, nkeys.PREFIX_BYTE_USER)
    )
    system = make_key(nkeys.PREFIX_BYTE_ACCOUNT)
    names = "subs data payload imports exports conn leaf mem_storage disk_storage streams consumer"
    limits: dict[str, Any] = dict.fromkeys(names.split(), -1) | {"wildcards": True}
    system_limits = {name: value for name, value in limits.items() if name not in names.split()[-4:]}
    operator_jwt = _jwt(
        operator.public, operator, "o", {"type": "operator", "version": 2, "system_account": system.public}
    )
    accounts = {
        account.public: _jwt(account.public, operator, "a", {"type": "account", "version": 2, "limits": limits}),
        system.public: _jwt(system.public, operator, "s", {"type": "account", "version": 2, "limits": system_limits}),
    }
    user_limits = {"subs": -1, "data": -1, "payload": -1}
    user_jwt = _jwt(user.public, account, "u", {"type": "user", "version": 2, **user_limits})
    creds.write_text(
        f"-----BEGIN NATS USER JWT-----\n{user_jwt}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user.seed}\n------END USER NKEY SEED------\n"
    )
    preloaded = "\n".join(f'  {public}: "{jwt}"' for public, jwt in accounts.items())
    return f'operator: "{operator_jwt}"\nresolver: MEMORY\nresolver_preload: {{\n{preloaded}\n}}\n'


class Certificates(NamedTuple):
    """PEM files: an authority, and a certificate of 127.0.0.1 with its key that serves for server and client."""

    ca: Path
    cert: Path
    key: Path


def make_certificates(directory: Path) -> Certificates:
    """Make an authority and a certificate in *directory* with ``openssl``."""
    directory.mkdir(parents=True)
    ca, ca_key, cert, key, request = (directory / name for name in ("ca.pem", "ca.key", "cert.pem", "key.pem", "csr"))
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    _openssl("req", "-x509", *new_key, "-keyout", ca_key, "-out", ca, "-subj", "/CN=test authority", "-days", "2")
    _openssl("req", *new_key, "-keyout", key, "-out", request, "-subj", "/CN=127.0.0.1")
    (directory / "extensions").write_text("subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n")
    signing: list[str | Path] = ["-CA", ca, "-CAkey", ca_key, "-CAcreateserial", "-extfile", directory / "extensions"]
    _openssl("x509", "-req", "-in", request, *signing, "-days", "2", "-out", cert)
    return Certificates(ca, cert, key)


def _openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)
