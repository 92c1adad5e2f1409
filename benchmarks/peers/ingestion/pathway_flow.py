"""Pathway: a DocumentStore over a directory, with a brute-force index in memory.

Set up as the pages "Document Store" (RAG) and "Indexing documents" show: a file system connector of raw bytes with
metadata, a parser, a splitter and the SentenceTransformerEmbedder. The parser is a function of its own, which that page
allows: Pathway's UnstructuredParser, for files of mixed formats, wants packages that conflict with the model's.
`static` mode reads the directory once; that it has read it all is how the program knows its end.

Arguments: directory of documents, directory of the index (unused), the model's directory, tokens of a chunk, and of the
overlap.
"""

import io
import json
import sys
import time
from pathlib import Path

import pathway as pw
from bs4 import BeautifulSoup
from pathway.stdlib.indexing import BruteForceKnnFactory
from pathway.xpacks.llm.document_store import DocumentStore
from pathway.xpacks.llm.embedders import SentenceTransformerEmbedder
from pathway.xpacks.llm.splitters import RecursiveSplitter
from pypdf import PdfReader


@pw.udf
def parse(contents: bytes) -> list[tuple[str, dict]]:
    """Text of a PDF, an HTML page, or text itself."""
    if contents.startswith(b"%PDF"):
        return [("\n".join(page.extract_text() for page in PdfReader(io.BytesIO(contents)).pages), {})]
    if b"<html" in contents[:200].lower():
        return [(BeautifulSoup(contents, "html.parser").get_text(), {})]
    return [(contents.decode("utf-8"), {})]


def main() -> None:
    """Run."""
    documents, _, model, tokens, overlap = sys.argv[1:]
    embedder = SentenceTransformerEmbedder(model=model)
    splitter = RecursiveSplitter(
        chunk_size=int(tokens), chunk_overlap=int(overlap), hf_tokenizer=embedder.model.tokenizer
    )
    table = pw.io.fs.read(documents, format="binary", with_metadata=True, mode="static")
    store = DocumentStore(
        docs=table, retriever_factory=BruteForceKnnFactory(embedder=embedder), parser=parse, splitter=splitter
    )
    embedder.model.encode(["The first pass of a process is slow."])
    chunks: dict[str, str] = {}
    asked: list[float] = []

    def on_chunk(key, row, **_) -> None:  # noqa: ANN001, ANN003  # its signature
        chunks[str(key)] = Path(row["metadata"]["path"].as_str()).name

    pw.io.subscribe(store.chunked_docs.select(metadata=pw.this.metadata), on_change=on_chunk)
    queries = pw.debug.table_from_rows(DocumentStore.RetrieveQuerySchema, [("How is a document read?", 3, None, None)])
    pw.io.subscribe(store.retrieve_query(queries), on_change=lambda **_: asked.append(time.monotonic()))
    print(json.dumps({"ready": True}), flush=True)
    began = time.monotonic()
    stopped = ""
    try:
        pw.run(monitoring_level=pw.MonitoringLevel.NONE)
    except Exception as error:  # noqa: BLE001  # whatever a parser raises
        stopped = f"{type(error).__name__}: {error}"
    said = {
        "took_s": time.monotonic() - began,
        "first_s": asked[0] - began if asked else None,
        "chunks": len(chunks),
        "documents": sorted(set(chunks.values())) if asked else [],  # an index in memory is gone with its process
        "stopped": stopped,
    }
    print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
