"""The settings of Sphinx. ``make docs`` builds without a network."""

from __future__ import annotations

from pallets_sphinx_themes import get_version  # type: ignore[import-untyped]
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

project = "Flask-Vault"
copyright = "2026 The Flask-Vault maintainers"
author = "The Flask-Vault maintainers"
release, version = get_version("Flask-Vault")

extensions = [
    "pallets_sphinx_themes",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx_click",
    "sphinx_copybutton",
    "sphinxcontrib.log_cabinet",
]
exclude_patterns = ["_build"]
highlight_language = "python"

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
# In the description, Sphinx leaves the annotations of __init__ unresolved.
autodoc_typehints = "signature"
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True

copybutton_exclude = ".linenos, .gp, .go"

html_theme = "flask"
html_title = f"Flask-Vault {version}"
html_show_sourcelink = False
# The banner asks a package index from the reader's browser.
version_banner = False

# The inventories are committed: a build must not depend on other people's servers. They
# hold only the names that are linked to, in version 1 of the format, which is plain
# text. To link to one more name, add its line.
intersphinx_mapping = {
    "blinker": ("https://blinker.readthedocs.io/en/stable/", "_inv/blinker.inv"),
    "click": ("https://click.palletsprojects.com/en/stable/", "_inv/click.inv"),
    "flask": ("https://flask.palletsprojects.com/en/stable/", "_inv/flask.inv"),
    "python": ("https://docs.python.org/3/", "_inv/python.inv"),
}

# Public signatures name them, and they are not public.
nitpick_ignore = [
    ("py:class", "Pin"),
    ("py:class", "flask_vault.client.Pin"),
    ("py:class", "flask_vault.entries.Entry"),
    ("py:class", "flask_vault.extension.H"),
    ("py:class", "flask_vault.observing.Observers"),
    ("py:class", "flask_vault.settings.Settings"),
    ("py:class", "flask_vault.extension.R"),
    ("py:class", "flask_vault.testing.cluster.C"),
    ("py:class", "flask_vault.testing.proxy.P"),
    ("py:class", "flask_vault.testing.server.D"),
    ("py:class", "flask_vault.vault.kv.Document"),
    ("py:class", "flask_vault.vault.kv.Location"),
    # A tuple of texts, by another name.
    ("py:class", "Credential"),
    # It has no inventory.
    ("py:class", "hvac.Client"),
]

# Where a class is defined, and where its own documentation says that it is. Annotations
# come as the first, inventories know the second.
documented_as = {
    # Where another name is imported for type checkers alone, annotations stay as text.
    "Flask": "flask.Flask",
    "blinker.base.NamedSignal": "blinker.NamedSignal",
    "blinker.base.Namespace": "blinker.Namespace",
    "blinker.base.Signal": "blinker.Signal",
    "click.core.Command": "click.Command",
    "click.core.Context": "click.Context",
    "click.core.Group": "click.Group",
    "click.exceptions.ClickException": "click.ClickException",
    "flask.app.Flask": "flask.Flask",
    "flask.blueprints.Blueprint": "flask.Blueprint",
    "flask.config.Config": "flask.Config",
    "flask.wrappers.Response": "flask.Response",
}


def name_as_documented(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: object
) -> None:
    """Let intersphinx, which is asked next, look for the documented name."""
    target = node.get("reftarget")

    if target in documented_as:
        node["reftarget"] = documented_as[target]


def leave_out_unnamed(app: Sphinx, context: object, lines: list[str]) -> None:
    """An argument without a name is none: it is there to be refused."""
    text = "\n".join([*lines, ""]).split(".. option:: ")
    lines[:] = ".. option:: ".join(
        part for part in text if not part.startswith("\n")
    ).splitlines()


def setup(app: Sphinx) -> None:
    app.connect("sphinx-click-process-arguments", leave_out_unnamed)
    app.connect("missing-reference", name_as_documented, priority=400)
