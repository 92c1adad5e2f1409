"""The producer of Celery's tasks: submits them, then says once a second how many have ended, until all have.

REDIS_URL, LLM_URL; arguments: how many, and the prefix of their ids.
"""

import json
import sys
import time

from benchmarks.peers.inference.celery_flow import answer, app

LOOK_S = 1.0


def main() -> None:
    """Run."""
    count, prefix = int(sys.argv[1]), sys.argv[2]
    waiting = {
        app.backend.get_key_for_task(answer.delay(job_id, f"Question {job_id}?").id)
        for job_id in (f"{prefix}-{n}" for n in range(count))
    }
    said = {"SUCCESS": 0, "FAILURE": 0}
    print(json.dumps({"submitted": count}), flush=True)
    while waiting:
        time.sleep(LOOK_S)
        keys = list(waiting)
        for key, found in zip(keys, app.backend.mget(keys), strict=True):
            state = json.loads(found)["status"] if found else "PENDING"
            if state in said:
                said[state] += 1
                waiting.discard(key)
        print(json.dumps({"answered": said["SUCCESS"], "failed": said["FAILURE"]}), flush=True)


if __name__ == "__main__":
    main()
