"""What Flask-Vault costs, measured beside what one would use instead of it.

.. code-block:: console

    $ python -m tests.benchmarks

Each row is one comparison within this run, on this machine: the two sides take turns,
so that what disturbs the one disturbs the other. Absolute figures of two runs, or of
two machines, say little.
"""
