"""TEMPORARY: what manifests rely on and other branches bring. Delete this file, and its uses, when they are merged."""

SETTINGS = frozenset({"stall_s", "kafka_security", "kafka_username", "kafka_password", "kafka_ca"})
FILES = frozenset({"requirements.lock"})
ROUTES = frozenset({"/livez", "/readyz"})
METRICS = """\
| `headrace_flow_info` | gauge | `flow`, `version` |
| `headrace_epoch_seconds` | histogram | `flow` |
| `headrace_snapshot_seconds` | histogram | `flow` |
| `headrace_records_read_total` | counter | `flow`, `topic` |
| `headrace_consumer_lag_records` | gauge | `flow`, `topic`, `partition` |
| `headrace_snapshot_bytes` | gauge | `flow` |
| `headrace_offload_in_flight` | gauge | `step` |
| `headrace_offload_waiting` | gauge | `step` |
| `headrace_offload_capacity` | gauge | `step` |
| `headrace_attempts_total` | counter | `step`, `outcome` |
| `headrace_call_seconds` | histogram | `step` |
| `headrace_dispatched_to_stored_seconds` | histogram | `step` |
| `headrace_state_seconds` | histogram | `step`, `state` |
| `headrace_circuit_state` | gauge | `dependency` |
| `headrace_executor_busy_seconds_total` | counter | `executor` |
| `headrace_executor_workers` | gauge | `executor` |
| `headrace_embed_batch_fill_ratio` | histogram | `model` |
| `headrace_embedded_texts_total` | counter | `source` |
| `headrace_tokens_total` | counter | `tenant`, `model`, `direction` |
| `headrace_cost_total` | counter | `tenant`, `model` |
| `headrace_dead_letters_total` | counter | `topic`, `step`, `error_class` |
| `headrace_over_budget_total` | counter | `tenant`, `policy` |
| `headrace_usage_unreserved_total` | counter | `tenant` |
| `headrace_usage_overrun_total` | counter | `tenant` |
| `headrace_guard_stopped_total` | counter | `limit` |
| `headrace_review_decisions_ignored_total` | counter |  |
| `headrace_reviews_open` | gauge |  |
| `headrace_ambiguous_claims_total` | counter | `tenant` |
| `headrace_tool_answers_ignored_total` | counter | `tool` |
| `headrace_callbacks_total` | counter | `outcome` |
| `headrace_gateway_requests_total` | counter | `route`, `status` |
| `headrace_gateway_request_seconds` | histogram | `route` |
| `headrace_gateway_streams` | gauge |  |
"""
