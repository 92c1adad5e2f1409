"""Apache Kafka as a company runs it: TLS, passwords, client certificates and access control lists."""

import re
from pathlib import Path

from tests.certificates import Authority
from tests.kafka.apache_kafka import ApacheKafka, free_port

PASSWORD = "tide-and-mill-7"  # noqa: S105  # of every user, for as long as a test runs

_SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
_PLAIN = "org.apache.kafka.common.security.plain.PlainLoginModule required"
_SECURITY = f"""\
listener.security.protocol.map=\
PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL_SSL:SASL_SSL,SSL:SSL,SASL_PLAINTEXT:SASL_PLAINTEXT
inter.broker.listener.name=PLAINTEXT
ssl.keystore.type=PEM
ssl.keystore.location={{keystore}}
ssl.truststore.type=PEM
ssl.truststore.location={{ca}}
listener.name.ssl.ssl.client.auth=required
listener.name.sasl_ssl.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config={_SCRAM}
listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config={_SCRAM}
listener.name.sasl_ssl.plain.sasl.jaas.config={_PLAIN} user_operator="{{password}}";
listener.name.sasl_plaintext.sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.sasl_plaintext.scram-sha-512.sasl.jaas.config={_SCRAM}
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS;User:operator;User:CN=operator
"""


class SecureKafka(ApacheKafka):
    """A broker with four listeners: plaintext for the test itself, SASL over TLS and without, and client certificates.

    `operator` may do everything, by SCRAM, PLAIN or a certificate; `flows`, by SCRAM, only what it is granted.
    """

    _format_options = tuple(
        f"--add-scram={mechanism}=[name={user},password={PASSWORD}]"
        for mechanism in ("SCRAM-SHA-512", "SCRAM-SHA-256")
        for user in ("operator", "flows")
    )

    def __init__(self, directory: Path, authority: Authority, *, host: str = "127.0.0.1") -> None:
        super().__init__(directory)
        certificate, key = authority.sign("broker", host)
        self._keystore = certificate.with_name("broker-keystore.pem")
        self._keystore.write_text(key.read_text() + certificate.read_text())
        self.authority = authority
        self._ports: dict[str, int] = {}

    @property
    def variables(self) -> dict[str, str]:
        """Of the operator, by SCRAM over TLS."""
        return {
            "HEADRACE_KAFKA_BOOTSTRAP": self.at("SASL_SSL"),
            "HEADRACE_KAFKA_SECURITY": "sasl_ssl",
            "HEADRACE_KAFKA_USERNAME": "operator",
            "HEADRACE_KAFKA_PASSWORD": PASSWORD,
            "HEADRACE_KAFKA_CA": str(self.authority.ca),
        }

    def at(self, listener: str) -> str:
        """The address of a listener."""
        return f"127.0.0.1:{self._ports[listener]}"

    def _configuration(self, controller_port: int, data: Path) -> str:
        self._ports = {name: free_port() for name in ("SASL_SSL", "SSL", "SASL_PLAINTEXT")}
        more = "".join(f",{name}://{self.at(name)}" for name in self._ports)
        plain = super()._configuration(controller_port, data)
        listening = re.sub(r"^((?:advertised\.)?listeners=.*)$", rf"\1{more}", plain, flags=re.MULTILINE)
        return listening + _SECURITY.format(keystore=self._keystore, ca=self.authority.ca, password=PASSWORD)
