"""LangChain: loaders by format, a splitter, and the indexing API with a record manager and a local Qdrant.

Set up as the pages "How to use the LangChain indexing API" (SQLRecordManager, incremental cleanup), "Qdrant" (local
mode) and "How to load documents from a directory" show. Batch sizes are the defaults.

Arguments: directory of documents, directory of the index, the model's directory, tokens of a chunk, and of the overlap.
"""

import json
import sys
import time
from pathlib import Path

from langchain_classic.indexes import SQLRecordManager, index
from langchain_community.document_loaders import BSHTMLLoader, DirectoryLoader, PyPDFLoader, TextLoader
from langchain_huggingface import HuggingFaceEmbeddings
from langchain_qdrant import QdrantVectorStore
from langchain_text_splitters import RecursiveCharacterTextSplitter
from qdrant_client import QdrantClient
from qdrant_client.models import Distance, VectorParams

LOADERS = {"*.md": TextLoader, "*.txt": TextLoader, "*.html": BSHTMLLoader, "*.pdf": PyPDFLoader}


def main() -> None:
    """Run."""
    documents, directory, model, tokens, overlap = sys.argv[1:]
    embeddings = HuggingFaceEmbeddings(model_name=model)
    splitter = RecursiveCharacterTextSplitter.from_huggingface_tokenizer(
        embeddings._client.tokenizer,  # noqa: SLF001  # the same one, so that a token is a token
        chunk_size=int(tokens),
        chunk_overlap=int(overlap),
    )
    client = QdrantClient(path=directory)
    client.create_collection("documents", vectors_config=VectorParams(size=384, distance=Distance.COSINE))
    store = QdrantVectorStore(client=client, collection_name="documents", embedding=embeddings)
    records = SQLRecordManager("qdrant/documents", db_url=f"sqlite:///{directory}/records.sqlite")
    records.create_schema()
    first: list[float] = []
    add = store.add_documents

    def timed_add(*arguments, **named):  # noqa: ANN002, ANN003, ANN202  # what it wraps
        added = add(*arguments, **named)
        first.append(time.monotonic())
        return added

    store.add_documents = timed_add
    embeddings.embed_query("The first pass of a process is slow.")
    print(json.dumps({"ready": True}), flush=True)
    began = time.monotonic()
    loaders = [DirectoryLoader(documents, glob=glob, loader_cls=loader) for glob, loader in LOADERS.items()]
    chunks = (
        chunk for loader in loaders for document in loader.lazy_load() for chunk in splitter.split_documents([document])
    )
    stopped = ""
    try:
        index(chunks, records, store, cleanup="incremental", source_id_key="source")
    except Exception as error:  # noqa: BLE001  # the loaders' libraries have a great many
        stopped = f"{type(error).__name__}: {error}"
    took_s = time.monotonic() - began
    points, _ = client.scroll("documents", limit=1_000_000)
    names = sorted({Path(point.payload["metadata"]["source"]).name for point in points})
    said = {
        "took_s": took_s,
        "first_s": first[0] - began if first else None,
        "chunks": len(points),
        "documents": names,
        "stopped": stopped,
    }
    print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
