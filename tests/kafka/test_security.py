"""Headrace on a Kafka with TLS, passwords, client certificates and access control lists."""

import base64
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its documented names, not marked as exported
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from connectors.kafka.topics import TopicSpec, create_topics
from schemas.topics import CATALOGUE, dead_letter_topics
from tests.certificates import Authority
from tests.gateway.running import RunningGateway, until
from tests.headrace_process import Payload, PlainClient, RunningFlows, headrace
from tests.kafka.apache_kafka import missing_tools
from tests.kafka.secure_kafka import PASSWORD, SecureKafka

pytestmark = pytest.mark.kafka

ROOT = Path(__file__).parents[2]

Variables = dict[str, str]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[SecureKafka]:
    """A broker with all topics."""
    missing = missing_tools()
    if missing is not None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(missing)
    broker = SecureKafka(tmp_path_factory.mktemp("kafka"), authority)
    try:
        broker.create()
        specs = [TopicSpec(topic.name, 1, topic.config) for topic in (*CATALOGUE, *dead_letter_topics())]
        create_topics(broker.bootstrap, specs)
        yield broker
    finally:
        broker.stop()


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Whom nobody trusts."""
    return Authority(tmp_path_factory.mktemp("stranger"), "stranger")


def secret(directory: Path, value: str) -> str:
    """The path of a file as a Kubernetes secret is mounted, or a person writes it with `echo`."""
    file = directory / "secret"
    file.write_text(f"{value}\n")
    return str(file)


def by_password(kafka: SecureKafka, directory: Path) -> Variables:
    variables = kafka.variables
    del variables["HEADRACE_KAFKA_PASSWORD"]
    return {**variables, "HEADRACE_KAFKA_PASSWORD_FILE": secret(directory, PASSWORD)}


def by_plain_password(kafka: SecureKafka, _directory: Path) -> Variables:
    return {**kafka.variables, "HEADRACE_KAFKA_SASL_MECHANISM": "PLAIN"}


def by_password_without_tls(kafka: SecureKafka, _directory: Path) -> Variables:
    variables = kafka.variables
    del variables["HEADRACE_KAFKA_CA"]
    plain = {"HEADRACE_KAFKA_BOOTSTRAP": kafka.at("SASL_PLAINTEXT"), "HEADRACE_KAFKA_SECURITY": "SASL_PLAINTEXT"}
    return variables | plain


def by_certificate(kafka: SecureKafka, directory: Path) -> Variables:
    certificate, key = kafka.authority.sign("operator", key_password=PASSWORD)
    return {
        "HEADRACE_KAFKA_BOOTSTRAP": kafka.at("SSL"),
        "HEADRACE_KAFKA_SECURITY": "ssl",
        "HEADRACE_KAFKA_CA": str(kafka.authority.ca),
        "HEADRACE_KAFKA_CERT": str(certificate),
        "HEADRACE_KAFKA_KEY": str(key),
        "HEADRACE_KAFKA_KEY_PASSWORD_FILE": secret(directory, PASSWORD),
    }


def by_options(kafka: SecureKafka, _directory: Path) -> Variables:
    options = (
        '{"security.protocol": "SASL_SSL", "sasl.mechanisms": "SCRAM-SHA-256", "sasl.username": "operator", '
        f'"sasl.password": "{PASSWORD}", "ssl.ca.location": "{kafka.authority.ca}"}}'
    )
    return {"HEADRACE_KAFKA_BOOTSTRAP": kafka.at("SASL_SSL"), "HEADRACE_KAFKA_OPTIONS": options}


@pytest.mark.parametrize("way", [by_password, by_plain_password, by_password_without_tls, by_certificate, by_options])
def test_a_flow_reads_and_writes(
    kafka: SecureKafka, tmp_path: Path, way: Callable[[SecureKafka, Path], Variables]
) -> None:
    variables = {**way(kafka, tmp_path), "HEADRACE_DATA_DIR": str(tmp_path)}
    plain = PlainClient(kafka.bootstrap)
    message = way.__name__.encode()
    with RunningFlows("usage", log=tmp_path / "log", **variables) as flows:
        plain.send("usage.tokens", message)
        plain.read_until("usage.tokens.dlq", lambda letters: message in map(message_of, letters))
        assert flows.terminate() == 0
    assert PASSWORD not in (tmp_path / "log").read_text()


def message_of(letter: Payload) -> bytes:
    return base64.b64decode(str(letter["message_value"]))


@pytest.mark.parametrize(
    "command",
    [
        ("topics", "create", "--partitions", "1"),
        ("dlq", "list"),
        ("usage",),
        ("reviews", "list"),
        ("jobs", "show", "q-9"),
    ],
    ids=" ".join,
)
def test_every_command_connects_like_the_flows(kafka: SecureKafka, command: tuple[str, ...]) -> None:
    done = headrace(*command, **kafka.variables)
    assert done.returncode == 0 or "knows a job" in done.stderr, done.stderr  # which it has read


def test_the_gateway_reads_and_writes(kafka: SecureKafka, tmp_path: Path) -> None:
    with RunningGateway(kafka.at("SASL_SSL"), tmp_path, **kafka.variables) as gateway:
        job_id = gateway.ready().ask()
        until(lambda: gateway.client.get(f"/v1/jobs/{job_id}").status_code == 200)
        assert gateway.client.get("/v1/dead-letters").status_code == 200
        assert gateway.client.get("/v1/flows").status_code == 200
        assert gateway.terminate() == 0


def wrong_password(kafka: SecureKafka, _stranger: Authority) -> Variables:
    return {**kafka.variables, "HEADRACE_KAFKA_PASSWORD": "made-of-water"}


def wrong_mechanism(kafka: SecureKafka, _stranger: Authority) -> Variables:
    variables = kafka.variables
    del variables["HEADRACE_KAFKA_CA"]
    return variables | {
        "HEADRACE_KAFKA_BOOTSTRAP": kafka.at("SASL_PLAINTEXT"),
        "HEADRACE_KAFKA_SECURITY": "sasl_plaintext",
        "HEADRACE_KAFKA_SASL_MECHANISM": "PLAIN",
    }


def untrusted_broker(kafka: SecureKafka, stranger: Authority) -> Variables:
    return {**kafka.variables, "HEADRACE_KAFKA_CA": str(stranger.ca)}


def another_host(kafka: SecureKafka, _stranger: Authority) -> Variables:
    """The certificate is for 127.0.0.1."""
    address = kafka.at("SASL_SSL").replace("127.0.0.1", "localhost")
    return {**kafka.variables, "HEADRACE_KAFKA_BOOTSTRAP": address}


def no_certificate(kafka: SecureKafka, _stranger: Authority) -> Variables:
    return {
        "HEADRACE_KAFKA_BOOTSTRAP": kafka.at("SSL"),
        "HEADRACE_KAFKA_SECURITY": "ssl",
        "HEADRACE_KAFKA_CA": str(kafka.authority.ca),
    }


def untrusted_certificate(kafka: SecureKafka, stranger: Authority) -> Variables:
    certificate, key = stranger.sign("operator")
    named = {"HEADRACE_KAFKA_CERT": str(certificate), "HEADRACE_KAFKA_KEY": str(key)}
    return no_certificate(kafka, stranger) | named


def no_tls(kafka: SecureKafka, _stranger: Authority) -> Variables:
    return {"HEADRACE_KAFKA_BOOTSTRAP": kafka.at("SASL_SSL")}


REFUSALS = [
    (wrong_password, "HEADRACE_KAFKA_PASSWORD"),
    (wrong_mechanism, "HEADRACE_KAFKA_SASL_MECHANISM"),
    (untrusted_broker, "HEADRACE_KAFKA_CA"),
    (another_host, "HEADRACE_KAFKA_BOOTSTRAP"),
    (no_certificate, "HEADRACE_KAFKA_CERT"),
    (untrusted_certificate, "HEADRACE_KAFKA_CERT"),
    (no_tls, "HEADRACE_KAFKA_SECURITY"),
]


@pytest.mark.parametrize(("how", "names"), REFUSALS, ids=[how.__name__ for how, _ in REFUSALS])
def test_a_broker_that_refuses_a_flow_is_one_line_that_names_the_variable(
    kafka: SecureKafka, stranger: Authority, tmp_path: Path, how: Callable[..., Variables], names: str
) -> None:
    refused = headrace("run", "usage", HEADRACE_DATA_DIR=str(tmp_path), **how(kafka, stranger))
    assert refused.returncode == 1
    (line,) = refused.stderr.splitlines()
    assert names in line
    assert "made-of-water" not in line
    assert PASSWORD not in line


@pytest.mark.parametrize("command", [("topics", "create"), ("submit", "request", "How?"), ("gateway", "--port", "0")])
def test_a_broker_that_refuses_a_command_is_one_line_that_names_the_variable(
    kafka: SecureKafka, stranger: Authority, tmp_path: Path, command: tuple[str, ...]
) -> None:
    refused = headrace(*command, HEADRACE_DATA_DIR=str(tmp_path), **wrong_password(kafka, stranger))
    assert refused.returncode == 1
    (line,) = refused.stderr.splitlines()
    assert "HEADRACE_KAFKA_PASSWORD" in line
    assert "made-of-water" not in line


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"HEADRACE_KAFKA_KEY_PASSWORD": "made-of-water"}, "HEADRACE_KAFKA_KEY_PASSWORD"),
        ({"HEADRACE_KAFKA_KEY_PASSWORD": ""}, "HEADRACE_KAFKA_KEY_PASSWORD"),
        ({"HEADRACE_KAFKA_CA": __file__}, "HEADRACE_KAFKA_CA"),
        ({"HEADRACE_KAFKA_CERT": "/no/such/file"}, "HEADRACE_KAFKA_CERT='/no/such/file': it cannot be read"),
    ],
)
def test_a_file_that_is_no_certificate_is_a_usage_error(
    kafka: SecureKafka, tmp_path: Path, change: Variables, says: str
) -> None:
    variables = by_certificate(kafka, tmp_path)
    variables["HEADRACE_KAFKA_KEY_PASSWORD"] = (
        Path(variables.pop("HEADRACE_KAFKA_KEY_PASSWORD_FILE")).read_text().strip()
    )
    refused = headrace("topics", "create", **(variables | change))
    assert refused.returncode == 2
    assert says in refused.stderr.splitlines()[-1]
    assert "made-of-water" not in refused.stderr


def granted(who: str) -> Iterator[AclBinding]:
    """The rights that the documentation lists for `who`, given to the user `flows`."""
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"```rights\n(.*?)```", page, re.DOTALL)
    for line in table.splitlines():
        name, operations, kind, pattern = line.split()
        if name == who:
            resource = {"topic": ResourceType.TOPIC, "group": ResourceType.GROUP, "cluster": ResourceType.BROKER}[kind]
            prefixed = pattern.endswith("*") and pattern != "*"
            for operation in operations.split(","):
                yield AclBinding(
                    resource,
                    pattern.rstrip("*") if prefixed else pattern,
                    ResourcePatternType.PREFIXED if prefixed else ResourcePatternType.LITERAL,
                    "User:flows",
                    "*",
                    AclOperation[re.sub(r"(?<=[a-z])(?=[A-Z])", "_", operation).upper()],
                    AclPermissionType.ALLOW,
                )


@pytest.fixture
def grant(kafka: SecureKafka) -> Iterator[Callable[[str], None]]:
    """Give the user `flows` the rights of somebody; they are taken back at the end."""
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})

    def give(who: str) -> None:
        bindings = list(granted(who))
        assert bindings
        for future in admin.create_acls(bindings).values():
            future.result(30)

    yield give
    every = AclBindingFilter(
        ResourceType.ANY,
        None,  # type: ignore[arg-type]  # any name, as documented
        ResourcePatternType.ANY,
        "User:flows",
        None,  # type: ignore[arg-type]  # any host
        AclOperation.ANY,
        AclPermissionType.ANY,
    )
    for deleted in admin.delete_acls([every]).values():
        deleted.result(30)


def as_flows(kafka: SecureKafka, directory: Path) -> Variables:
    return {**kafka.variables, "HEADRACE_KAFKA_USERNAME": "flows", "HEADRACE_DATA_DIR": str(directory)}


@pytest.mark.slow
def test_flows_need_no_rights_but_those_that_are_documented(
    kafka: SecureKafka, tmp_path: Path, grant: Callable[[str], None]
) -> None:
    variables = as_flows(kafka, tmp_path)
    grant("flows")
    plain = PlainClient(kafka.bootstrap)
    with RunningFlows("ingest", "answer", "usage", "notifications", "webhooks", log=tmp_path / "log", **variables):
        plain.send("documents.uploaded", {"document_id": "d", "job_id": "d-1", "text": "The filter is changed weekly."})
        plain.read_until("documents.indexed", lambda found: any(each["job_id"] == "d-1" for each in found))
        plain.send("requests.submitted", {"job_id": "q-1", "prompt": "How often is the filter changed?"})
        plain.read_until("results.completed", lambda found: any(each["job_id"] == "q-1" for each in found))
    log = (tmp_path / "log").read_text()
    assert "uthorization" not in log, log


@pytest.mark.slow
def test_the_gateway_needs_no_rights_but_those_that_are_documented(
    kafka: SecureKafka, tmp_path: Path, grant: Callable[[str], None]
) -> None:
    grant("gateway")
    with RunningGateway(kafka.at("SASL_SSL"), tmp_path, **as_flows(kafka, tmp_path)) as gateway:
        job_id = gateway.ready().ask(job_id="of-the-gateway")
        until(lambda: gateway.client.get(f"/v1/jobs/{job_id}").status_code == 200)
        assert gateway.client.delete(f"/v1/jobs/{job_id}").status_code == 202
        assert gateway.client.get("/v1/dead-letters").status_code == 200
        until(lambda: gateway.client.get("/v1/flows").json() != {})
    assert "uthorization" not in (tmp_path / "gateway.log").read_text()


@pytest.mark.slow
def test_topics_are_created_with_no_rights_but_those_that_are_documented(
    kafka: SecureKafka, tmp_path: Path, grant: Callable[[str], None]
) -> None:
    grant("create")
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    admin.delete_topics(["results.delta"])["results.delta"].result(30)
    done = headrace("topics", "create", "--partitions", "1", "--json", **as_flows(kafka, tmp_path))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["created"] == ["results.delta"]


def test_a_flow_without_rights_ends_with_one_line_that_names_the_topic(kafka: SecureKafka, tmp_path: Path) -> None:
    refused = headrace("run", "usage", **as_flows(kafka, tmp_path))
    assert refused.returncode == 1
    (line,) = [line for line in refused.stderr.splitlines() if line.startswith("headrace:")]
    assert "topic" in line.lower()
    assert "authorization" in line.lower().replace("authorized", "authorization")
