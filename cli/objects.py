"""The object store as it is configured, for flows and the gateway alike."""

from connectors.object_store import ObjectStore
from connectors.settings import Settings


def object_store(settings: Settings) -> ObjectStore:
    """The claim-check store, and what else document URIs may name."""
    base = settings.object_store or str((settings.data_dir / "objects").resolve())
    return ObjectStore(
        base, file_roots=settings.file_roots, protocols=settings.store_protocols, http_hosts=settings.http_hosts
    )
