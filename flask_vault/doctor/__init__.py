"""Looks for what is wrong on the whole way from an app to its secrets."""
