"""What whoever runs Headrace asks and does over HTTP: reviews, dead letters, usage, and how far the flows are."""

from functools import partial

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from connectors.kafka.reviews import read_prompt
from gateway.keys import authenticate
from gateway.lag import FlowLag, Lag, Sample
from gateway.letters import Letters
from gateway.parts import Parts
from gateway.problems import responses
from gateway.reviews import Reviews
from gateway.usage import UsageRoutes
from schemas.budgets import Budget
from schemas.prices import Prices

_EXAMPLE: JsonDict = {
    "flow": "answer",
    "topics": [{"topic": "requests.submitted", "lag": 12, "end": 1041, "committed": 1029}],
    "lag": 12,
    "per_s": 40.2,
    "history": [[1769860800.0, 213, 0.0], [1769860805.0, 12, 40.2]],
}


class TopicShown(BaseModel):
    """A topic that a flow reads; sums over its partitions."""

    topic: str
    lag: int = Field(description="Records that it holds and the flow has not done.")
    end: int = Field(description="Sum of the offsets at which its partitions end.")
    committed: int = Field(description="Sum of the offsets that the flow has committed.")


class FlowShown(BaseModel):
    """How far a flow is."""

    flow: str
    topics: list[TopicShown]
    lag: int = Field(description="Over all its topics.")
    per_s: float = Field(description="Records per second since the sample before.")
    history: list[Sample] = Field(
        description="`[unix_s, lag, per_s]` every 5 s, the oldest first, for 5 minutes; an outage of Kafka is a gap."
    )


class FlowList(BaseModel):
    """The flows that have ever run, by name."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"flows": [_EXAMPLE]}]})

    flows: list[FlowShown]


class Flows:
    """The route."""

    def __init__(self, lag: Lag) -> None:
        self._lag = lag

    def router(self) -> APIRouter:
        """Under /v1."""
        router = APIRouter(tags=["flows"])
        router.add_api_route("/flows", self.list_flows, responses=responses(), dependencies=[Depends(authenticate)])
        return router

    async def list_flows(self) -> FlowList:
        """How far each flow is behind, and how fast it goes. They are shared: every tenant sees the same."""
        return FlowList(flows=[_shown(each) for each in self._lag.flows()])


def _shown(flow: FlowLag) -> FlowShown:
    topics = [
        TopicShown(topic=each.topic, lag=each.lag, end=each.end, committed=each.committed) for each in flow.topics
    ]
    return FlowShown(flow=flow.flow, topics=topics, lag=flow.lag, per_s=flow.per_s, history=list(flow.history))


def router(parts: Parts) -> APIRouter:
    """All of it, under /v1."""
    limits = parts.limits
    conversation = partial(read_prompt, parts.bootstrap, parts.kafka_options)
    routes = APIRouter(prefix="/v1")
    routes.include_router(Reviews(parts.read_model, parts.publisher, conversation).router())
    routes.include_router(Letters(parts.read_model, parts.publisher, parts.letters).router())
    routes.include_router(UsageRoutes(parts.read_model, Prices(limits.prices), limits.budget or Budget()).router())
    routes.include_router(Flows(parts.lag).router())
    return routes
