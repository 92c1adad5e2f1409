"""The topic catalogue as KafkaTopic resources, for clusters whose topics Strimzi's operator makes."""

from schemas.topics import CATALOGUE, Topic, dead_letter_topics

_HEAD = """\
# Made by `make manifests` from schemas/topics.py. In the namespace of the Kafka cluster, whose topic operator reads it.
"""
_TOPIC = """\
---
apiVersion: kafka.strimzi.io/v1
kind: KafkaTopic
metadata:
  name: {resource}
  labels:
    strimzi.io/cluster: kafka
spec:
  topicName: {name}
  partitions: {partitions}
  replicas: {replicas}
  config:
{config}
"""


def kafka_topics(*, partitions: int, replicas: int) -> str:
    """One resource per topic, dead-letter topics included, as YAML. What the catalogue leaves open is the broker's."""
    return _HEAD + "".join(_resource(topic, partitions, replicas) for topic in (*CATALOGUE, *dead_letter_topics()))


def _resource(topic: Topic, partitions: int, replicas: int) -> str:
    return _TOPIC.format(
        resource=topic.name.replace("_", "-"),  # a Kubernetes name has no underscore
        name=topic.name,
        partitions=partitions,
        replicas=replicas,
        config="\n".join(f'    {setting}: "{value}"' for setting, value in topic.config.items()),
    )
