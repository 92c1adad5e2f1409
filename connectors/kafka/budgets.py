"""The budgets that hold at the start of a flow, so that no request is let through before its tenant's is known."""

from collections.abc import Mapping

from pydantic import ValidationError

from connectors.kafka.reader import TopicReader
from schemas.budgets import BudgetChanged
from schemas.topics import topic_of


def read_budgets(bootstrap: str, config: Mapping[str, str] | None = None) -> dict[str, BudgetChanged]:
    """Of each tenant the valid budget on budgets.config that was decided last.

    Raises Retryable if no broker answers within 10 s.
    """
    topic = topic_of(BudgetChanged).name
    budgets: dict[str, BudgetChanged] = {}
    with TopicReader(bootstrap, config) as reader:
        for record in reader.records([topic]) if reader.exists(topic) else ():
            try:
                changed = (
                    BudgetChanged.model_validate_json(record.value)
                    if record.value
                    else BudgetChanged.of_tombstone(record.key)
                )
            except ValidationError:
                continue  # the flow itself makes a dead letter of it
            if changed is None:
                continue
            changed = changed.written(record.timestamp)
            former = budgets.get(changed.tenant)
            if former is None or changed.changed_at >= former.changed_at:
                budgets[changed.tenant] = changed
    return budgets
