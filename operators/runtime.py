"""What every operator of a flow shares: its topics, the loop for slow calls, and the wish to stop."""

from dataclasses import dataclass

from connectors.event_loop import EventLoop
from connectors.kafka.port import Topics
from connectors.kafka.stop import Stop


@dataclass(frozen=True)
class Runtime:
    """One per flow; made by whoever runs it, so that tests run the same flow on memory."""

    topics: Topics
    loop: EventLoop
    stop: Stop
