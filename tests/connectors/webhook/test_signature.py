"""Secrets of webhooks: what is none is refused at the start, and never shown."""

import pytest

from connectors.settings import load
from connectors.webhook.signature import secrets_of
from tests.webhook_receiver import OTHER_SECRET, SECRET


def test_one_secret_or_several_are_read() -> None:
    assert secrets_of(SECRET) == (b"secret of the tests, nobody else",)
    assert len(secrets_of(f"{SECRET} {OTHER_SECRET}")) == 2


@pytest.mark.parametrize(
    ("secret", "says"),
    [
        ("", "is empty"),
        ("s3cret", "does not begin with whsec_"),
        ("whsec_s3cret!", "is not base64"),
        ("whsec_czNjcmV0", "has 6 bytes"),
        (f"{SECRET} s3cret", "does not begin with whsec_"),
    ],
)
def test_a_bad_secret_is_one_line_at_the_start_that_names_the_variable_and_not_the_secret(
    secret: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_WEBHOOK_SECRETS", f'{{"acme": "{secret}"}}')
    with pytest.raises(ValueError, match=r"^HEADRACE_WEBHOOK_SECRETS") as caught:
        load()
    assert says in str(caught.value)
    assert "Value error" not in str(caught.value)
    assert "of acme" in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_good_secrets_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_WEBHOOK_SECRETS", f'{{"*": "{SECRET}"}}')
    assert load().webhook_secrets["*"].get_secret_value() == SECRET
