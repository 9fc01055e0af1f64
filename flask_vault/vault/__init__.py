"""All that talks to a Vault or OpenBao server. Knows no Flask."""
