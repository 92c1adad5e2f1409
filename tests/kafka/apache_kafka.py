"""Apache Kafka for tests: one real broker in KRaft mode, its jars by Maven, its data in a directory of the test run."""

import base64
import contextlib
import hashlib
import re
import shutil
import socket
import subprocess
import time
import uuid
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from filelock import FileLock

HERE = Path(__file__).parent
_JARS = HERE / ".jars"
_START_S = 60.0
_TRIES = 5  # a free port may be taken by another process before the broker binds it

_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller_port}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
log.dirs={data}
auto.create.topics.enable=false
offsets.topic.num.partitions=4
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
"""


def missing_tools() -> str | None:
    """Why Apache Kafka cannot run here, or None."""
    for tool in ("java", "mvn"):
        if shutil.which(tool) is None:
            return f"Apache Kafka needs Java 17 or newer and Maven: {tool} is not on the PATH"
    banner = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False).stderr
    version = re.search(r'version "(\d+)', banner)
    if version is None or int(version[1]) < 17:
        return f"Apache Kafka needs Java 17 or newer; this is {banner.splitlines()[0] if banner else 'unknown'}"
    return None


def jars() -> Path:
    """The broker's jars; fetched once for each content of pom.xml, and by one process at a time."""
    pom = HERE / "pom.xml"
    target = _JARS / hashlib.sha256(pom.read_bytes()).hexdigest()[:12]
    _JARS.mkdir(exist_ok=True)
    with FileLock(_JARS / "lock"):
        if not target.exists():
            unfinished = _JARS / "unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            command = ["mvn", "-q", "-B", "-f", str(pom), "dependency:copy-dependencies"]
            done = subprocess.run(
                [*command, f"-DoutputDirectory={unfinished}"], capture_output=True, text=True, check=False
            )
            if done.returncode != 0:
                raise RuntimeError(f"Maven could not fetch Apache Kafka:\n{done.stdout}{done.stderr}")
            unfinished.rename(target)
    return target


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class ApacheKafka:
    """A broker that can be stopped and started again with its data and its address."""

    _format_options: tuple[str, ...] = ()

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self._port}"

    def create(self) -> None:
        """Format the storage and start, on ports that are free."""
        for attempt in range(_TRIES):
            self._format(self._directory / f"try-{attempt}")
            with contextlib.suppress(RuntimeError):
                self.start()
                return
        raise RuntimeError(f"Apache Kafka did not start:\n{self._log_tail()}")

    def start(self) -> None:
        """Start the broker and return when it answers; RuntimeError with the end of its log if it does not."""
        with (self._directory / "broker.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._java("-Xmx512m"), "kafka.Kafka", str(self._properties)], stdout=log, stderr=log
            )
        admin = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(KafkaException):
                if admin.list_topics(timeout=1.0).brokers:
                    return
        self.stop()
        raise RuntimeError(f"Apache Kafka did not start:\n{self._log_tail()}")

    def stop(self) -> None:
        """End the broker in an orderly way."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(30.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    @property
    def _properties(self) -> Path:
        return self._directory / "server.properties"

    def _format(self, data: Path) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._port = free_port()
        self._properties.write_text(self._configuration(free_port(), data))
        cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        tool = [*self._java(), "kafka.tools.StorageTool", "format", f"--cluster-id={cluster_id}"]
        subprocess.run([*tool, "-c", str(self._properties), *self._format_options], check=True, capture_output=True)

    def _configuration(self, controller_port: int, data: Path) -> str:
        return _PROPERTIES.format(port=self._port, controller_port=controller_port, data=data)

    def _java(self, *options: str) -> list[str]:
        return ["java", *options, "-cp", f"{jars()}/*"]

    def _log_tail(self) -> str:
        log = self._directory / "broker.log"
        return "\n".join(log.read_text(errors="replace").splitlines()[-20:])
