"""LlamaIndex: SimpleDirectoryReader, then an IngestionPipeline with a document store and a local Qdrant.

Set up as the pages "Ingestion Pipeline" (transformations, vector store, document management) and
"SimpleDirectoryReader" show; the readers are the default ones, and for HTML the one of the same package. The
batch size is the default.

Arguments: directory of documents, directory of the index, the model's directory, tokens of a chunk, and of the overlap.
"""

import json
import sys
import time

from llama_index.core import SimpleDirectoryReader
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.embeddings.huggingface import HuggingFaceEmbedding
from llama_index.readers.file import HTMLTagReader
from llama_index.vector_stores.qdrant import QdrantVectorStore
from qdrant_client import QdrantClient


def main() -> None:
    """Run."""
    said_to, sys.stdout = sys.stdout, sys.stderr  # where the reader prints which files it could not read
    documents, index, model, tokens, overlap = sys.argv[1:]
    embedder = HuggingFaceEmbedding(model_name=model)
    tokenizer = embedder._model.tokenizer  # noqa: SLF001  # the same one, so that a token is a token
    client = QdrantClient(path=index)
    store = QdrantVectorStore(collection_name="documents", client=client)
    pipeline = IngestionPipeline(
        transformations=[
            SentenceSplitter(chunk_size=int(tokens), chunk_overlap=int(overlap), tokenizer=tokenizer.tokenize),
            embedder,
        ],
        docstore=SimpleDocumentStore(),
        vector_store=store,
    )
    first: list[float] = []
    add = store.add

    def timed_add(*arguments, **named):  # noqa: ANN002, ANN003, ANN202  # what it wraps
        added = add(*arguments, **named)
        first.append(time.monotonic())
        return added

    object.__setattr__(store, "add", timed_add)
    embedder.get_text_embedding("The first pass of a process is slow.")
    print(json.dumps({"ready": True}), file=said_to, flush=True)
    began = time.monotonic()
    stopped = ""
    try:
        read = SimpleDirectoryReader(documents, file_extractor={".html": HTMLTagReader(tag="body")}).load_data()
        pipeline.run(documents=read)
    except Exception as error:  # noqa: BLE001  # the readers' libraries have a great many
        stopped = f"{type(error).__name__}: {error}"
    took_s = time.monotonic() - began
    points = client.scroll("documents", limit=1_000_000, with_payload=["file_name"])[0] if first else []
    said = {
        "took_s": took_s,
        "first_s": first[0] - began if first else None,
        "chunks": len(points),
        "documents": sorted({point.payload["file_name"] for point in points}),
        "stopped": stopped,
    }
    print(json.dumps(said), file=said_to, flush=True)


if __name__ == "__main__":
    main()
