"""The configuration of a server that keeps its data."""

from __future__ import annotations

import json
import os
import pathlib
import typing as t
import urllib.parse

Storage = t.Literal["file", "raft"]


def write_config(
    folder: pathlib.Path,
    storage: Storage,
    address: str,
    certificate: tuple[str, str] | None,
) -> pathlib.Path:
    """Write the configuration file.

    :param folder: for the file, and for the data below it.
    :param address: where to listen. The port above is for the server's own use.
    :param certificate: the files of a certificate and its private key, for TLS.
    """
    url = urllib.parse.urlsplit(address)
    data = folder / "data"
    data.mkdir(exist_ok=True)
    listener: dict[str, object] = {"address": url.netloc}
    backend: dict[str, object] = {"path": os.fspath(data)}

    if certificate is None:
        listener["tls_disable"] = True
    else:
        listener["tls_cert_file"], listener["tls_key_file"] = certificate

    if storage == "raft":
        # The shortest election: nobody else can win it.
        backend |= {"node_id": "dev", "performance_multiplier": 1}

    config = folder / "config.json"
    config.write_text(
        json.dumps(
            {
                "storage": {storage: backend},
                "listener": {"tcp": listener},
                "api_addr": address,
                "cluster_addr": f"https://{url.hostname}:{(url.port or 0) + 1}",
                # Vault needs it where memory cannot be locked, in a container for one.
                # OpenBao knows it no more, and warns in its log.
                "disable_mlock": True,
                "ui": False,
            }
        )
    )
    return config
