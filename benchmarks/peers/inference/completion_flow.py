"""One streamed chat completion by `requests`, for the peers whose calls block: what any team would write.

No more than Headrace's client does: the same endpoint, the same timeouts, and a stream without its end is no answer.
"""

import json

import requests

CONNECT_TIMEOUT_S = 10.0
IDLE_TIMEOUT_S = 60.0  # between two bytes
ATTEMPTS = 5  # in all
BACKOFF_S = 0.5  # before the second attempt at most, then doubled ...
MOST_BACKOFF_S = 30.0  # ... to this


class CallFailed(Exception):
    """No answer, but another attempt may get one."""


def complete(base_url: str, job_id: str, prompt: str) -> str:
    """The whole answer. Raises CallFailed."""
    try:
        with requests.post(
            f"{base_url}/chat/completions",
            json={"model": "test", "messages": [{"role": "user", "content": prompt}], "stream": True},
            headers={"Idempotency-Key": f"{job_id}/0/0"},
            stream=True,
            timeout=(CONNECT_TIMEOUT_S, IDLE_TIMEOUT_S),
        ) as response:
            response.raise_for_status()
            text = ""
            for line in response.iter_lines():
                data = line.removeprefix(b"data: ")
                if data == b"[DONE]":
                    return text
                if line.startswith(b"data: "):
                    text += "".join(choice["delta"].get("content", "") for choice in json.loads(data)["choices"])
    except (requests.RequestException, ValueError) as error:
        raise CallFailed(f"{type(error).__name__}: {error}") from error
    raise CallFailed("the stream has no end")
