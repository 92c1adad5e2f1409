"""documents.notified ─► uploads ─► documents.uploaded; failures ─► documents.notified.dlq."""

from bytewax.dataflow import Dataflow

from operators.dead_letter import dead_letter
from operators.decode import consume
from operators.notified import Buckets, uploads
from operators.produce import produce
from operators.runtime import Runtime
from schemas.documents import DocumentUploaded
from schemas.notifications import BucketNotified


def build(runtime: Runtime, buckets: Buckets) -> Dataflow:
    """A bucket as a source of documents: put in front of `ingest`, or of `extract`."""
    flow = Dataflow("notifications")
    notified = consume("notified", flow, BucketNotified, runtime)
    uploaded = uploads("uploads", notified.oks, buckets)
    produce("uploaded", uploaded.oks, DocumentUploaded, runtime)
    dead_letter("dlq", notified.errs, uploaded.errs, runtime=runtime)
    return flow
