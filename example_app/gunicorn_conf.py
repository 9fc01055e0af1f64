"""How gunicorn runs the example."""

from __future__ import annotations

workers = 2
#: Seconds that a worker has for its last requests.
graceful_timeout = 3
#: Gunicorn 25.1 and later would make a socket in the home folder.
control_socket_disable = True
