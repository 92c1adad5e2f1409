"""The brokers of docker-compose.yml and of the overlay for one machine start with the settings that they have there."""

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from connectors.kafka.topics import TopicSpec, create_topics, ensure_reachable
from schemas.errors import Retryable
from tests.gateway.running import until
from tests.k8s.rendering import TOPICS, compose, of_kind, rendered
from tests.k8s.test_prometheus import free_port
from tests.kafka.apache_kafka import jars, missing_tools

pytestmark = pytest.mark.kafka

START_S = 60.0


def of_compose() -> dict[str, str]:
    """The variables of its broker."""
    found: dict[str, str] = compose()["services"]["kafka"]["environment"]
    return found


def of_the_overlay() -> dict[str, str]:
    """The same."""
    sets = {each["metadata"]["name"]: each for each in of_kind(rendered("overlays/local"), "StatefulSet")}
    (container,) = sets["kafka"]["spec"]["template"]["spec"]["containers"]
    return {each["name"]: each["value"] for each in container["env"]}


def here(variables: dict[str, str], data: Path) -> str:
    """A server.properties, as the image makes one of its variables; with ports and a directory of this machine."""
    lines = [
        f"{name.removeprefix('KAFKA_').lower().replace('_', '.')}={value}"
        for name, value in variables.items()
        if name.startswith("KAFKA_")
    ]
    text = "\n".join(lines).replace(variables["KAFKA_LOG_DIRS"], str(data))
    for port in set(re.findall(r":(\d{4})\b", text)):
        text = text.replace(f":{port}", f":{free_port()}")
    return text.replace("//kafka:", "//127.0.0.1:").replace("@kafka:", "@127.0.0.1:")


@pytest.mark.parametrize("variables_of", [of_compose, of_the_overlay])
def test_it_starts_and_takes_every_topic(variables_of: Callable[[], dict[str, str]], tmp_path: Path) -> None:
    missing = missing_tools()
    if missing is not None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(missing)
    variables, properties = variables_of(), tmp_path / "server.properties"
    properties.write_text(here(variables, tmp_path / "data"))
    java = ["java", "-Xmx256m", "-cp", f"{jars()}/*"]
    tool = [*java, "kafka.tools.StorageTool", "format", f"--cluster-id={variables['CLUSTER_ID']}"]
    subprocess.run([*tool, "-c", str(properties)], check=True, capture_output=True)
    (bootstrap,) = re.findall(r"^advertised\.listeners=PLAINTEXT://([\d.:]+)", properties.read_text(), re.MULTILINE)

    def reachable() -> bool:
        assert broker.poll() is None, (tmp_path / "log").read_text()[-2000:]
        try:
            ensure_reachable(bootstrap, timeout_s=1.0)
        except Retryable:
            return False
        return True

    with (tmp_path / "log").open("wb") as log:
        broker = subprocess.Popen([*java, "kafka.Kafka", str(properties)], stdout=log, stderr=log)
    try:
        until(reachable, within_s=START_S)
        specs = [TopicSpec(name, 1, topic.config) for name, topic in TOPICS.items()]
        assert set(create_topics(bootstrap, specs).created) == TOPICS.keys()
    finally:
        broker.terminate()
        broker.wait(START_S)
