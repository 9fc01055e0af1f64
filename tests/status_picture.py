"""Makes the picture of the status page that is in the docs.

.. code-block:: console

    $ python -m tests.status_picture
"""

from __future__ import annotations

import pathlib
import sys

from flask_vault.extension import state_of
from flask_vault.testing import DevServer
from flask_vault.testing.plugin import VaultMount

from .browser import open_browser
from .browser import served
from .browser import what_is_missing
from .png import with_palette
from .status_scenes import passing

PICTURE = pathlib.Path(__file__).parents[1] / "docs" / "images" / "status-page.png"

#: In CSS pixels. As wide as the text of the docs, with some room to shrink.
WIDTH = 960


def main() -> None:
    missing = what_is_missing()

    if missing is not None:
        sys.exit(missing)

    with DevServer() as server, open_browser() as browser:
        server.enable_kv("picture")
        app = passing(VaultMount("picture", server.address, server.root_token))
        # The scene's login is a token; nearly everybody has a role.
        state_of(app).client.transport.method.name = "approle"

        with served(app) as address:
            browser.open(f"{address}/vault/health", WIDTH)
            PICTURE.write_bytes(with_palette(browser.picture()))

    print(f"{PICTURE.name}: {PICTURE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
