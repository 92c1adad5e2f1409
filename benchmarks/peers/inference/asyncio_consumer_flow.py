"""A consumer as one would write it by hand with asyncio: a semaphore, tasks, and manual commits.

aiokafka's documentation, "Manual commit" and "Consumer client": auto commit is off, and what was processed is
committed. An offset is committed once all before it are done.

KAFKA_BOOTSTRAP, KAFKA_GROUP, LLM_URL, SLOTS.
"""

import asyncio
import json
import os
import random
from collections import defaultdict

import aiohttp
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

ATTEMPTS = 5  # in all
BACKOFF_S = 0.5  # before the second attempt at most, then doubled ...
MOST_BACKOFF_S = 30.0  # ... to this
COMMIT_S = 1.0
TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10.0, sock_read=60.0)


class CallFailed(Exception):
    """No answer, but another attempt may get one."""


async def complete(session: aiohttp.ClientSession, job_id: str, prompt: str) -> str:
    """The whole answer. Raises CallFailed."""
    body = {"model": "test", "messages": [{"role": "user", "content": prompt}], "stream": True}
    text = ""
    try:
        async with session.post(
            f"{os.environ['LLM_URL']}/chat/completions", json=body, headers={"Idempotency-Key": f"{job_id}/0/0"}
        ) as response:
            response.raise_for_status()
            async for line in response.content:
                data = line.strip().removeprefix(b"data: ")
                if data == b"[DONE]":
                    return text
                if line.startswith(b"data: "):
                    text += "".join(choice["delta"].get("content", "") for choice in json.loads(data)["choices"])
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise CallFailed(f"{type(error).__name__}: {error}") from error
    raise CallFailed("the stream has no end")


class Done:
    """Which offsets may be committed: those before the first one of their partition that is still in work."""

    def __init__(self) -> None:
        self._open: dict[TopicPartition, set[int]] = defaultdict(set)
        self._next: dict[TopicPartition, int] = {}

    def began(self, partition: TopicPartition, offset: int) -> None:
        """Work on it began."""
        self._open[partition].add(offset)
        self._next[partition] = offset + 1

    def ended(self, partition: TopicPartition, offset: int) -> None:
        """Its answer is in Kafka."""
        self._open[partition].discard(offset)

    def offsets(self) -> dict[TopicPartition, int]:
        """What may be committed."""
        return {each: min(self._open[each], default=after) for each, after in self._next.items()}


async def answer(session: aiohttp.ClientSession, producer: AIOKafkaProducer, job_id: str, prompt: str) -> None:
    """Call the model until it answers, and produce the answer, or why there is none."""
    topic, payload = "failures", {"job_id": job_id}
    for attempt in range(1, ATTEMPTS + 1):
        try:
            payload = {"job_id": job_id, "text": await complete(session, job_id, prompt)}
            topic = "answers"
            break
        except CallFailed as error:
            payload = {"job_id": job_id, "message": str(error)}
        if attempt < ATTEMPTS:
            await asyncio.sleep(random.uniform(0, min(BACKOFF_S * 2 ** (attempt - 1), MOST_BACKOFF_S)))  # noqa: S311  # spreads load
    await producer.send_and_wait(topic, json.dumps(payload).encode(), job_id.encode())


async def main() -> None:
    """Run until a signal."""
    bootstrap = os.environ["KAFKA_BOOTSTRAP"]
    slots = asyncio.Semaphore(int(os.environ["SLOTS"]))
    done = Done()
    tasks: set[asyncio.Task[None]] = set()
    consumer = AIOKafkaConsumer(
        "questions",
        bootstrap_servers=bootstrap,
        group_id=os.environ["KAFKA_GROUP"],
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap)
    session = aiohttp.ClientSession(timeout=TIMEOUT, connector=aiohttp.TCPConnector(limit=0))

    async def handle(partition: TopicPartition, offset: int, value: bytes) -> None:
        try:
            question = json.loads(value)
            await answer(session, producer, question["job_id"], question["prompt"])
            done.ended(partition, offset)
        finally:
            slots.release()

    async def commit() -> None:
        while True:
            await asyncio.sleep(COMMIT_S)
            if offsets := done.offsets():
                await consumer.commit(offsets)

    await producer.start()
    await consumer.start()
    async with session:
        committing = asyncio.create_task(commit())
        async for message in consumer:
            await slots.acquire()
            partition = TopicPartition(message.topic, message.partition)
            done.began(partition, message.offset)
            task = asyncio.create_task(handle(partition, message.offset, message.value))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await committing


if __name__ == "__main__":
    asyncio.run(main())
