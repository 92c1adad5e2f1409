"""What every operator of a flow shares: its topics, the loop for slow calls, and how it is told to wait or to end."""

from dataclasses import dataclass, field

from connectors.cancellations import Cancellations
from connectors.circuit import Circuits
from connectors.cluster import Cluster
from connectors.event_loop import EventLoop
from connectors.kafka.port import Topics
from connectors.kafka.pressure import Pressure
from connectors.kafka.progress import Progress
from connectors.kafka.stop import Stop
from connectors.slices import Slice
from connectors.tracing.off import NoTracing
from connectors.tracing.port import Tracer
from schemas.errors import Fatal


@dataclass(frozen=True)
class Runtime:
    """One per flow; made by whoever runs it, so that tests run the same flow on memory."""

    topics: Topics
    loop: EventLoop
    stop: Stop
    pressure: Pressure = field(default_factory=Pressure)  # its sources obey the same one
    circuits: Circuits = field(default_factory=Circuits)  # shared by the flows of a process
    cancellations: Cancellations = field(default_factory=Cancellations)  # same
    cluster: Cluster = field(default_factory=Cluster)  # that runs the flow
    slice: Slice | None = None  # of the flow's work that is this process's, where others have the rest
    progress: Progress = field(default_factory=lambda: Progress("flow"))  # its sources and sinks report to the same one
    tracer: Tracer = field(default_factory=NoTracing)  # same
    log_content: bool = False  # prompts and answers may be logged
    raised: list[Fatal] = field(default_factory=list)  # by offload: Bytewax may panic instead, and lose what it says
