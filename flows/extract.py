"""documents.uploaded ─► extract ─► check in ─► documents.extracted; failures ─► documents.uploaded.dlq."""

from bytewax.dataflow import Dataflow

from connectors.object_store import ObjectStore
from connectors.parsers.port import Parser
from operators.claim_check import check_in
from operators.dead_letter import dead_letter
from operators.decode import consume
from operators.extract import ExtractPolicy, extract
from operators.produce import produce
from operators.runtime import Runtime
from schemas.documents import DocumentExtracted, DocumentUploaded


def build(runtime: Runtime, store: ObjectStore, parser: Parser, extraction: ExtractPolicy) -> Dataflow:
    """The first third of `ingest`: needs CPU, no model and no index."""
    flow = Dataflow("extract")
    uploaded = consume("uploaded", flow, DocumentUploaded, runtime)
    extracted = extract("extract", uploaded.oks, store, parser, extraction, runtime)
    stored = check_in("check_in", extracted.oks, DocumentExtracted, store, runtime)
    produce("extracted", stored.oks, DocumentExtracted, runtime)
    dead_letter("dlq", uploaded.errs, extracted.errs, stored.errs, runtime=runtime)
    return flow
