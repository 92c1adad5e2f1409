"""Settings: secrets from files, and how to connect to Kafka."""

from pathlib import Path

import pytest

from connectors.settings import load

SECRET = "tide-and-mill-7"  # noqa: S105  # nobody's


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    return monkeypatch


def refused() -> str:
    with pytest.raises(ValueError, match="HEADRACE") as caught:
        load()
    message = str(caught.value)
    assert "\n" not in message
    assert SECRET not in message
    return message


def written(directory: Path, content: str) -> str:
    file = directory / "secret"
    directory.mkdir(exist_ok=True)
    file.write_text(content, encoding="utf-8")
    return str(file)


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_secret_comes_from_the_file_that_its_variable_names(
    variables: pytest.MonkeyPatch, tmp_path: Path, end: str
) -> None:
    variables.setenv("HEADRACE_LEDGER_PASSWORD_FILE", written(tmp_path, f" {SECRET} {end}"))
    password = load().ledger_password
    assert password is not None
    assert password.get_secret_value() == f" {SECRET} "


def test_what_is_json_is_json_in_a_file(variables: pytest.MonkeyPatch, tmp_path: Path) -> None:
    variables.setenv("HEADRACE_KAFKA_OPTIONS_FILE", written(tmp_path, '{\n  "sasl.password": "x"\n}\n'))
    variables.setenv(
        "HEADRACE_BUDGET_FILE", written(tmp_path / "budget", '{"windows": [{"seconds": 60, "tokens": 9}]}')
    )
    settings = load()
    assert settings.kafka_options == {"sasl.password": "x"}
    assert settings.budget is not None
    assert settings.budget.windows[0].tokens == 9


def test_a_variable_and_its_file_are_one_too_many(variables: pytest.MonkeyPatch, tmp_path: Path) -> None:
    variables.setenv("HEADRACE_LLM_API_KEY", SECRET)
    variables.setenv("HEADRACE_LLM_API_KEY_FILE", written(tmp_path, SECRET))
    assert "HEADRACE_LLM_API_KEY and HEADRACE_LLM_API_KEY_FILE are both set" in refused()


def test_an_empty_variable_is_none(variables: pytest.MonkeyPatch, tmp_path: Path) -> None:
    variables.setenv("HEADRACE_LLM_API_KEY", "")
    variables.setenv("HEADRACE_LLM_API_KEY_FILE", written(tmp_path, SECRET))
    key = load().llm_api_key
    assert key is not None
    assert key.get_secret_value() == SECRET


@pytest.mark.parametrize(("path", "says"), [("none", "No such file"), (".", "Is a directory")])
def test_a_file_that_cannot_be_read_is_one_line_with_its_path(
    variables: pytest.MonkeyPatch, tmp_path: Path, path: str, says: str
) -> None:
    variables.setenv("HEADRACE_QDRANT_API_KEY_FILE", str(tmp_path / path))
    message = refused()
    assert f"HEADRACE_QDRANT_API_KEY_FILE={tmp_path / path}: it cannot be read" in message
    assert says in message


@pytest.mark.parametrize("content", ["", "\n"])
def test_an_empty_file_is_no_secret(variables: pytest.MonkeyPatch, tmp_path: Path, content: str) -> None:
    variables.setenv("HEADRACE_KAFKA_PASSWORD_FILE", written(tmp_path, content))
    assert refused().endswith("it is empty")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("HEADRACE_WEBHOOK_SECRETS", f'{{"acme": "{SECRET}"}}'),
        ("HEADRACE_WEBHOOK_SECRETS", f'{{"acme": "{SECRET}'),
        ("HEADRACE_KAFKA_OPTIONS", f'{{"sasl.password": ["{SECRET}"]}}'),
        ("HEADRACE_EPOCH_S", SECRET),  # a file that was mounted at the wrong place
    ],
)
def test_what_a_file_holds_is_never_shown(
    variables: pytest.MonkeyPatch, tmp_path: Path, name: str, content: str
) -> None:
    variables.setenv(f"{name}_FILE", written(tmp_path, content))
    assert refused().startswith(f"{name}_FILE: ")


def test_keys_have_their_own_file(variables: pytest.MonkeyPatch, tmp_path: Path) -> None:
    variables.setenv("HEADRACE_API_KEYS_FILE", written(tmp_path, "{}"))
    variables.setenv("HEADRACE_API_KEYS", "{}")
    assert load().api_keys_file == tmp_path / "secret"


def kafka(variables: pytest.MonkeyPatch, **values: str) -> None:
    for name, value in values.items():
        variables.setenv(f"HEADRACE_KAFKA_{name}", value)


def test_without_security_nothing_is_said_to_the_client(variables: pytest.MonkeyPatch) -> None:
    kafka(variables, OPTIONS='{"linger.ms": "1"}')
    assert load().kafka_config() == {"linger.ms": "1"}


def test_a_password_is_proven_by_scram_unless_another_way_is_named(variables: pytest.MonkeyPatch) -> None:
    kafka(variables, SECURITY="SASL_SSL", USERNAME="mill", PASSWORD=SECRET)
    assert load().kafka_config() == {
        "security.protocol": "sasl_ssl",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": "mill",
        "sasl.password": SECRET,
    }
    kafka(variables, SASL_MECHANISM="plain")
    assert load().kafka_config()["sasl.mechanism"] == "PLAIN"


def test_the_password_may_stay_out_of_the_options(variables: pytest.MonkeyPatch) -> None:
    kafka(
        variables,
        OPTIONS='{"security.protocol": "SASL_SSL", "sasl.mechanisms": "PLAIN", "sasl.username": "mill"}',
        PASSWORD=SECRET,
    )
    assert load().kafka_config()["sasl.password"] == SECRET


def test_other_mechanisms_need_no_password(variables: pytest.MonkeyPatch) -> None:
    kafka(variables, SECURITY="sasl_ssl", OPTIONS='{"sasl.mechanism": "OAUTHBEARER"}')
    assert load().kafka_config() == {"security.protocol": "sasl_ssl", "sasl.mechanism": "OAUTHBEARER"}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"PASSWORD": SECRET}, "HEADRACE_KAFKA_PASSWORD does nothing with HEADRACE_KAFKA_SECURITY=plaintext"),
        ({"CA": __file__}, "HEADRACE_KAFKA_CA does nothing with HEADRACE_KAFKA_SECURITY=plaintext"),
        ({"SECURITY": "sasl_plaintext", "CA": __file__}, "HEADRACE_KAFKA_CA does nothing"),
        ({"SECURITY": "ssl", "USERNAME": "mill"}, "does nothing with HEADRACE_KAFKA_SECURITY=ssl: make that sasl_ssl"),
        ({"SECURITY": "sasl_ssl"}, "HEADRACE_KAFKA_USERNAME is missing: HEADRACE_KAFKA_SECURITY=sasl_ssl needs it"),
        ({"SECURITY": "sasl_ssl", "USERNAME": "mill"}, "HEADRACE_KAFKA_PASSWORD is missing"),
        ({"SECURITY": "ssl", "CERT": __file__}, "HEADRACE_KAFKA_KEY is missing: HEADRACE_KAFKA_CERT needs it"),
        ({"SECURITY": "ssl", "KEY": __file__}, "HEADRACE_KAFKA_CERT is missing: HEADRACE_KAFKA_KEY needs it"),
        ({"SECURITY": "ssl", "CA": "/none"}, "HEADRACE_KAFKA_CA='/none': it cannot be read: No such file"),
        ({"SECURITY": "tls"}, "HEADRACE_KAFKA_SECURITY='tls': Input should be 'plaintext', 'ssl'"),
        ({"SECURITY": "ssl", "OPTIONS": '{"security.protocol": "SSL"}'}, "leave out one"),
        (
            {"SECURITY": "sasl_ssl", "USERNAME": "m", "PASSWORD": SECRET, "OPTIONS": '{"sasl.password": "x"}'},
            "sasl.password is in HEADRACE_KAFKA_OPTIONS, and HEADRACE_KAFKA_PASSWORD says it",
        ),
    ],
)
def test_what_makes_no_sense_is_one_line_that_names_the_variable(
    variables: pytest.MonkeyPatch, values: dict[str, str], says: str
) -> None:
    kafka(variables, **values)
    assert says in refused()


def test_no_client_is_made_without_the_security_settings() -> None:
    """`kafka_options` are but a part of them: only the settings read it."""
    root = Path(__file__).parents[2]
    sources = (file for folder in ("cli", "gateway", "connectors") for file in (root / folder).rglob("*.py"))
    reading = [file.name for file in sources if "settings.kafka_options" in file.read_text(encoding="utf-8")]
    assert reading == []
