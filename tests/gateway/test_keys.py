"""Who may use the gateway."""

import json
from pathlib import Path

import pytest

from gateway import keys
from gateway.keys import Buckets, Caller, Keys, configured, digest_of, new_key
from gateway.problems import Problem


def refused(keys: Keys, key: str | None, client: str = "192.0.2.1") -> Problem:
    with pytest.raises(Problem) as raised:
        keys.caller(key, client)
    return raised.value


def test_a_key_is_its_tenants_and_no_other_key_is() -> None:
    ours, theirs, root = new_key(), new_key(), new_key()
    known = Keys({digest_of(ours): "acme", digest_of(theirs): "umbra", digest_of(root): "*"})
    assert known.caller(ours, "") == Caller("acme")
    assert known.caller(root, "").sees_all
    assert refused(known, new_key()).status == 401
    assert refused(known, digest_of(ours)).status == 401
    assert refused(known, None).headers["WWW-Authenticate"]


def test_keys_are_long_and_never_the_same() -> None:
    made = {new_key() for _ in range(100)}
    assert len(made) == 100
    assert all(key.startswith("hr_") and len(key) >= 46 for key in made)


def test_without_keys_everybody_sees_all() -> None:
    caller = Keys({}).caller(None, "")
    assert caller.open
    assert caller.scope(None) is None
    assert caller.acting_for("acme") == "acme"


def test_a_tenant_acts_for_nobody_else() -> None:
    caller = Caller("acme")
    assert caller.scope(None) == caller.scope("acme") == caller.acting_for(None) == "acme"
    for act in (caller.scope, caller.acting_for):
        with pytest.raises(Problem) as raised:
            act("umbra")
        assert raised.value.status == 403


def test_what_is_no_tenant_is_refused() -> None:
    with pytest.raises(Problem) as raised:
        Caller("*").acting_for("../etc")
    assert raised.value.status == 422
    assert "etc" not in raised.value.detail


def test_a_key_has_its_burst_then_its_rate_and_others_have_theirs() -> None:
    now = 0.0
    buckets = Buckets(2.0, 3, lambda: now)
    assert [buckets.take("a") for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert buckets.take("b") == 0.0
    now = 0.5
    assert [buckets.take("a") for _ in range(2)] == [0.0, 0.5]
    now = 1000.0
    assert [buckets.take("a") for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]


def test_too_many_requests_are_told_when_to_go_on() -> None:
    key = new_key()
    known = Keys({digest_of(key): "acme"}, per_s=0.1, burst=1)
    known.caller(key, "")
    problem = refused(known, key)
    assert (problem.status, problem.headers["Retry-After"]) == (429, "10")


def test_whoever_guesses_is_slowed_down_and_whoever_has_a_key_is_not_even_behind_the_same_proxy() -> None:
    key = new_key()
    known = Keys({digest_of(key): "acme"})
    statuses = [refused(known, "guess").status for _ in range(25)]
    assert statuses[0] == 401
    assert statuses[-1] == 429
    assert known.caller(key, "192.0.2.1") == Caller("acme")


def test_clients_without_number_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_MOST_BUCKETS", 10)
    buckets = Buckets(1.0, 1)
    for number in range(100):
        buckets.take(str(number))
    assert len(buckets._filled) == 10  # noqa: SLF001  # what is promised is about it


def test_keys_come_from_the_variable_and_the_file(tmp_path: Path) -> None:
    first, second = digest_of(new_key()), digest_of(new_key())
    file = tmp_path / "keys.json"
    file.write_text(json.dumps({second: "*"}))
    assert configured({first: "acme"}, file) == {first: "acme", second: "*"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "not JSON"),
        ("[]", "a JSON object"),
        ('{"hr_secret-key": "acme"}', "entry 1 does not begin with the SHA-256"),
        (json.dumps({"a" * 64: "no tenant"}), "entry 1 names no tenant"),
        (json.dumps({"a" * 64: 7}), "entry 1 names no tenant"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_the_variable_and_shows_no_key(
    tmp_path: Path, content: str, said: str
) -> None:
    file = tmp_path / "keys.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=said) as raised:
        configured({}, file)
    assert str(raised.value).startswith("HEADRACE_API_KEYS_FILE=")
    assert "secret" not in str(raised.value)


def test_one_key_of_two_tenants_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_text(json.dumps({"a" * 64: "umbra"}))
    with pytest.raises(ValueError, match="another tenant's"):
        configured({"a" * 64: "acme"}, file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"HEADRACE_API_KEYS_FILE=.*No such file"):
        configured({}, tmp_path / "none.json")
