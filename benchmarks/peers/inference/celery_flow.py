"""Calls of a model as Celery tasks, with Redis as broker and result backend.

Set up as Celery's user guide says: late acknowledgement, rejection when a worker is lost, and one message reserved per
slot for long tasks that must not be lost ("Optimizing", "Tasks"); the gevent pool for tasks that wait for networks
("Concurrency"); retries with exponential backoff and jitter ("Automatic retry for known exceptions"); a visibility
timeout of Redis longer than the longest run of a task ("Using Redis", "Caveats"): by default an unacknowledged message
comes back after an hour; as many connections as greenlets that use them ("Optimizing", "Broker Connection Pools"):
with the default of 10, acknowledgements fail with "Too many connections", and what was done is done again.
"""

import json
import os
import sys

from celery import Celery
from celery.signals import worker_ready

from benchmarks.peers.inference.completion_flow import ATTEMPTS, MOST_BACKOFF_S, CallFailed, complete

SLOTS = int(os.environ["SLOTS"])

app = Celery("answers", broker=os.environ["REDIS_URL"], backend=os.environ["REDIS_URL"])
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
    broker_pool_limit=SLOTS,
    broker_transport_options={
        "visibility_timeout": 180,  # a run takes 30 s, or 90 s if the server hangs
        "max_connections": 2 * SLOTS,
    },
    broker_connection_retry_on_startup=True,
)


@app.task(
    autoretry_for=(CallFailed,),
    retry_backoff=True,
    retry_backoff_max=int(MOST_BACKOFF_S),
    retry_jitter=True,
    max_retries=ATTEMPTS - 1,
)
def answer(job_id: str, prompt: str) -> str:
    """The model's answer."""
    return complete(os.environ["LLM_URL"], job_id, prompt)


@worker_ready.connect
def _ready(**_: object) -> None:
    print(json.dumps({"ready": True}), file=sys.__stdout__, flush=True)  # sys.stdout goes to Celery's log
