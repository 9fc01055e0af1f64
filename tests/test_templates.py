"""Templates make one config value of a document, such as the URL of a database."""

from __future__ import annotations

import typing as t
import urllib.parse

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.urls import iri_to_uri

from flask_vault import SecretValueError
from flask_vault import VaultConfigError
from flask_vault.templates import Template

DATABASE = "postgresql+psycopg://{username}:{password}@{host}/{dbname}"


def render(text: str, **fields: str) -> str:
    return Template.parse(text).render(fields.__getitem__)


def test_a_password_with_marks_works_in_a_url() -> None:
    url = render(
        DATABASE, username="app", password="p@s/s:w", host="db:5432", dbname="erp"
    )

    assert url == "postgresql+psycopg://app:p%40s%2Fs%3Aw@db:5432/erp"


@given(username=st.text(), password=st.text(), dbname=st.text())
def test_whatever_the_values_are_the_url_parses_back(
    username: str, password: str, dbname: str
) -> None:
    url = render(
        DATABASE, username=username, password=password, host="db:5432", dbname=dbname
    )
    # What a browser or a client makes of it must be the same, too.
    for parts in (urllib.parse.urlsplit(url), urllib.parse.urlsplit(iri_to_uri(url))):
        assert parts.scheme == "postgresql+psycopg"
        assert urllib.parse.unquote(t.cast(str, parts.username)) == username
        assert urllib.parse.unquote(t.cast(str, parts.password)) == password
        assert (parts.hostname, parts.port) == ("db", 5432)
        assert urllib.parse.unquote(parts.path) == f"/{dbname}"
        assert (parts.query, parts.fragment) == ("", "")


@given(password=st.text(min_size=1))
def test_sqlalchemy_reads_the_password_back(password: str) -> None:
    sqlalchemy = pytest.importorskip("sqlalchemy", reason="SQLAlchemy is missing.")
    url = render(DATABASE, username="app", password=password, host="db", dbname="erp")

    assert sqlalchemy.engine.make_url(url).password == password


@given(value=st.text())
def test_a_value_in_path_query_or_fragment_begins_no_other_part(value: str) -> None:
    url = render("https://db/{a}?key={a}#{a}", a=value)
    parts = urllib.parse.urlsplit(url)

    assert urllib.parse.unquote(parts.path[1:]) == value
    assert urllib.parse.unquote(parts.query) == f"key={value}"
    assert urllib.parse.unquote(parts.fragment) == value


@pytest.mark.parametrize(
    "host",
    ["db", "db:5432", "10.0.0.1", "[::1]:5432", "a:1,b:2", "b\u00fccher.example"],
)
def test_a_host_stays_as_it_is(host: str) -> None:
    assert render("redis://:{pw}@{host}/0", pw="x", host=host) == f"redis://:x@{host}/0"
    assert render("redis://{host}", host=host) == f"redis://{host}"


@given(host=st.text())
def test_a_host_that_would_begin_another_part_is_refused(host: str) -> None:
    try:
        url = render("postgresql://app:pw@{host}/erp?ssl=1", host=host)
    except SecretValueError as error:
        assert "field 'host'" in str(error)
        assert "correct it in Vault" in str(error)
    else:
        assert url == f"postgresql://app:pw@{host}/erp?ssl=1"
        authority = url.removeprefix("postgresql://").partition("/")[0]
        assert authority == f"app:pw@{host}"


@pytest.mark.parametrize(
    "host", ["db/x", "db?x", "db#x", "me@db", "d b", "db\n", "d\\b", "db%2f"]
)
def test_a_host_with_another_part_in_it_is_refused(host: str) -> None:
    with pytest.raises(SecretValueError) as caught:
        render(DATABASE, username="u", password="p", host=host, dbname="d")

    assert host not in str(caught.value)


def test_a_user_is_escaped_where_there_is_no_password() -> None:
    assert render("smtp://{user}@{host}", user="a@b", host="mx") == "smtp://a%40b@mx"


def test_verbatim_on_request_and_where_there_is_no_url() -> None:
    assert render("https://x/{path!s}", path="a/b?c") == "https://x/a/b?c"
    assert render("user={u} password={p}", u="a", p="b/c@d") == "user=a password=b/c@d"
    assert render("{scheme}://x", scheme="postgresql+psycopg") == (
        "postgresql+psycopg://x"
    )


def test_literal_braces_and_names_with_dashes() -> None:
    template = Template.parse("{{{api-key}}} {user_id}")

    assert template.fields == ("api-key", "user_id")
    assert template.render({"api-key": "k", "user_id": "u"}.__getitem__) == "{k} u"


@pytest.mark.parametrize(
    "text",
    [
        "{password.__class__}",
        "{password[0]}",
        "{0}",
        "{}",
        "{ password }",
        "{password:>10}",
        "{password:{width}}",
        "{password!r}",
        "{password!a}",
        "{password",
        "password}",
        "{config.SECRET_KEY}",
    ],
)
def test_a_template_reads_fields_and_nothing_else(text: str) -> None:
    with pytest.raises(VaultConfigError, match="the template "):
        Template.parse(text)
