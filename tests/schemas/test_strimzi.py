"""The catalogue as Strimzi's resources."""

import yaml

from schemas.strimzi import kafka_topics
from schemas.topics import CATALOGUE, dead_letter_topics


def test_every_topic_is_a_resource_with_the_settings_of_the_catalogue() -> None:
    resources = list(yaml.safe_load_all(kafka_topics(partitions=6, replicas=2)))
    catalogue = {topic.name: topic.config for topic in (*CATALOGUE, *dead_letter_topics())}
    assert {each["spec"]["topicName"]: each["spec"]["config"] for each in resources} == catalogue
    assert {(each["spec"]["partitions"], each["spec"]["replicas"]) for each in resources} == {(6, 2)}


def test_resources_have_names_of_their_own() -> None:
    names = [each["metadata"]["name"] for each in yaml.safe_load_all(kafka_topics(partitions=1, replicas=1))]
    assert len(set(names)) == len(names)
    assert not any("_" in name for name in names)
