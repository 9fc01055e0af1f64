"""gunicorn -c gunicorn.conf.py 'app:create_app()'"""

import os

bind = os.environ.get("BIND", "0.0.0.0:8000")
workers = int(os.environ.get("WEB_CONCURRENCY", "4"))

# One login and one read of each document, whatever the number of workers.
preload_app = True

# gthread answers a health check while another thread of the worker is busy.
worker_class = "gthread"
threads = 4

# Seconds. Longer than VAULT_READ_TIMEOUT, which a request of a user may wait for.
timeout = 30

# Seconds that requests have to end when the host is taken out of service.
graceful_timeout = 30
