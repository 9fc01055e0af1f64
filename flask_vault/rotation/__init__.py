"""Making, storing and backing up new values. Knows no Flask."""
