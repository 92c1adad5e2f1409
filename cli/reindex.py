"""`headrace reindex`: another embedding model for a collection, while the old one serves."""

import json
import sys
from time import monotonic

import click

from cli.configuration import settings_for
from cli.logs import configure_logs
from cli.progress import progress
from connectors.event_loop import EventLoop
from schemas.errors import HeadraceError


@click.command()
@click.option("--model", required=True, help="sentence-transformers model: a name or a directory.")
@click.option("--collection", default="documents", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def reindex(model: str, collection: str, *, as_json: bool) -> None:
    """Embed a collection anew with MODEL, beside the vectors that serve, and then switch to it at once.

    Resume it by running it again; go back by naming the former model: only what has changed since is embedded. The
    flows must know both models (HEADRACE_EMBED_MODEL, HEADRACE_EMBED_MODELS). With the embedded index, stop them first.
    """
    from cli.wiring import Connectors
    from operators.reindex import SETTLE_S, Reindex, serving_now

    settings = settings_for()
    configure_logs(settings.log_level)
    began = monotonic()
    with EventLoop() as loop, Connectors(settings, loop, "reindex") as connectors:
        try:
            vectors = connectors.vectors
        except HeadraceError as error:
            raise HeadraceError(f"{error}. To embed a collection of the embedded index anew, stop its flows") from error
        loop.run(serving_now(collection, vectors), timeout_s=60)  # before a model is loaded in vain
        embedder = connectors.remembering_embedder(model)
        work = Reindex(
            collection, embedder, vectors, progress, settle_s=0.0 if settings.qdrant_url is None else SETTLE_S
        )
        running = loop.submit(work.run())
        try:
            switched = running.result()
        except KeyboardInterrupt:
            running.cancel()
            serving = loop.run(work.serving(), timeout_s=60)
            click.echo(f"stopped; {serving} serves. Run the same command again to go on", err=True)
            sys.exit(130)
    if as_json:
        seconds = round(monotonic() - began, 3)
        shown = {"collection": collection, "model": embedder.model, "switched": switched, "documents": work.copied}
        click.echo(json.dumps(shown | {"seconds": seconds}))
    elif switched:
        click.echo(f"{collection} is now served by {embedder.model}; {work.copied:,} documents were embedded for that")
    else:
        click.echo(f"{collection} is served by {embedder.model} already: nothing to do")
