"""Bytewax with its stock Kafka connectors and keyed state, as its documentation has it; run with `-r`, its recovery.

Pages: "Kafka Connector" (`bytewax.connectors.kafka.operators`), "Stateful Operators", "Recovery".
"""

import bytewax.operators as op
from bytewax.connectors.kafka import KafkaSinkMessage, KafkaSourceMessage
from bytewax.connectors.kafka import operators as kop
from bytewax.dataflow import Dataflow

from benchmarks.peers.control.work import Place, decode, enrich
from schemas.requests import RequestSubmitted

Decoded = RequestSubmitted | KafkaSourceMessage


def _decoded(message: KafkaSourceMessage) -> Decoded:
    try:
        return decode(message.value)
    except ValueError:
        return message


def _if_new(seen: bool | None, request: RequestSubmitted) -> tuple[bool, RequestSubmitted | None]:  # noqa: FBT001  # the operator's own shape
    return True, None if seen else request


at = Place.told()
flow = Dataflow("control")
read = kop.input("read", flow, brokers=[at.bootstrap], topics=[at.source])
parted = op.branch("valid", op.map("decode", read.oks, _decoded), lambda item: isinstance(item, RequestSubmitted))
keyed = op.key_on("key", parted.trues, lambda request: request.job_id)
fresh = op.filter_value("fresh", op.stateful_map("dedup", keyed, _if_new), lambda request: request is not None)
enriched = op.map("enrich", fresh, lambda item: KafkaSinkMessage(item[1].key_bytes, enrich(item[1])))
kop.output("write", enriched, brokers=[at.bootstrap], topic=at.output)
letters = op.map("letter", parted.falses, lambda message: KafkaSinkMessage(message.key, message.value))
kop.output("letters", letters, brokers=[at.bootstrap], topic=at.letters)
