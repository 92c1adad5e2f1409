"""The read model's file: its tables, and how long their rows are kept.

A row keeps the event as JSON, and as columns what is asked for. Every row has `written_ms`, its record's timestamp,
by which it is pruned as its topic is. Times end in their unit: `_us` and `_ms` since 1970 in UTC.
"""

from schemas.topics import CATALOGUE, dead_letter_topics

VERSION = 2
"""Of the tables. A file of another version is made anew."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS positions (
    topic TEXT, partition INTEGER, next_offset INTEGER NOT NULL, PRIMARY KEY (topic, partition)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS sources (topic TEXT PRIMARY KEY, id TEXT NOT NULL) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS jobs (
    job_id TEXT PRIMARY KEY, tenant TEXT NOT NULL, kind TEXT NOT NULL, state TEXT NOT NULL, step TEXT NOT NULL,
    submitted_us INTEGER NOT NULL, updated_us INTEGER NOT NULL, document_id TEXT, cancel_requested INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS jobs_by_time ON jobs (submitted_us, job_id);
CREATE INDEX IF NOT EXISTS jobs_by_state ON jobs (state, submitted_us, job_id);
CREATE INDEX IF NOT EXISTS jobs_by_tenant ON jobs (tenant, submitted_us, job_id);
CREATE INDEX IF NOT EXISTS jobs_by_tenant_and_state ON jobs (tenant, state, submitted_us, job_id);

CREATE TABLE IF NOT EXISTS submissions (
    job_id TEXT, topic TEXT, tenant TEXT NOT NULL, submitted_us INTEGER NOT NULL, document_id TEXT,
    body_sha256 TEXT, written_ms INTEGER NOT NULL, PRIMARY KEY (job_id, topic)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS submissions_by_age ON submissions (written_ms);

CREATE TABLE IF NOT EXISTS statuses (
    job_id TEXT, offset INTEGER, written_ms INTEGER NOT NULL, event BLOB NOT NULL, PRIMARY KEY (job_id, offset)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS statuses_by_age ON statuses (written_ms);

CREATE TABLE IF NOT EXISTS results (
    job_id TEXT PRIMARY KEY, offset INTEGER NOT NULL, written_ms INTEGER NOT NULL, event BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS results_by_age ON results (written_ms);

CREATE TABLE IF NOT EXISTS deltas (
    id INTEGER PRIMARY KEY, job_id TEXT NOT NULL, offset INTEGER NOT NULL, call_id TEXT NOT NULL,
    number INTEGER NOT NULL, last INTEGER NOT NULL, written_ms INTEGER NOT NULL, event BLOB NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS deltas_by_job ON deltas (job_id, offset);

CREATE TABLE IF NOT EXISTS indexed (
    job_id TEXT PRIMARY KEY, tenant TEXT NOT NULL, document_id TEXT NOT NULL, indexed_us INTEGER NOT NULL,
    chunks INTEGER NOT NULL, deleted INTEGER NOT NULL, written_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS indexed_by_document ON indexed (document_id, indexed_us);
CREATE INDEX IF NOT EXISTS indexed_by_age ON indexed (written_ms);

CREATE TABLE IF NOT EXISTS letters (
    letter_id TEXT PRIMARY KEY, job_id TEXT NOT NULL, tenant TEXT NOT NULL, step TEXT NOT NULL,
    error_class TEXT NOT NULL, failed_us INTEGER NOT NULL, topic TEXT NOT NULL, partition INTEGER NOT NULL,
    offset INTEGER NOT NULL, written_ms INTEGER NOT NULL, event BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS letters_by_job ON letters (job_id);
CREATE INDEX IF NOT EXISTS letters_by_time ON letters (failed_us, letter_id);
CREATE INDEX IF NOT EXISTS letters_by_age ON letters (written_ms);

CREATE TABLE IF NOT EXISTS redriven (
    letter_id TEXT PRIMARY KEY, job_id TEXT NOT NULL, redriven_us INTEGER NOT NULL, written_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS redriven_by_age ON redriven (written_ms);

CREATE TABLE IF NOT EXISTS reviews (
    review_id TEXT PRIMARY KEY, job_id TEXT NOT NULL, root_job_id TEXT NOT NULL, tenant TEXT NOT NULL,
    requested_us INTEGER NOT NULL, expires_us INTEGER, written_ms INTEGER NOT NULL, event BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS reviews_by_time ON reviews (requested_us, review_id);
CREATE INDEX IF NOT EXISTS reviews_by_job ON reviews (job_id);
CREATE INDEX IF NOT EXISTS reviews_by_age ON reviews (written_ms);

CREATE TABLE IF NOT EXISTS decisions (
    review_id TEXT, job_id TEXT, root_job_id TEXT, decided_us INTEGER NOT NULL, decision TEXT NOT NULL,
    written_ms INTEGER NOT NULL, event BLOB NOT NULL, PRIMARY KEY (review_id, job_id, root_job_id)
);
CREATE INDEX IF NOT EXISTS decisions_by_age ON decisions (written_ms);

CREATE TABLE IF NOT EXISTS cancels (
    job_id TEXT, tenant TEXT, requested_us INTEGER NOT NULL, written_ms INTEGER NOT NULL, event BLOB NOT NULL,
    PRIMARY KEY (job_id, tenant)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS cancels_by_age ON cancels (written_ms);

CREATE TABLE IF NOT EXISTS usage (
    key TEXT PRIMARY KEY, tenant TEXT NOT NULL, window_s INTEGER NOT NULL, start_us INTEGER NOT NULL,
    version INTEGER NOT NULL, event BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS usage_by_time ON usage (window_s, start_us);

CREATE TABLE IF NOT EXISTS budgets (
    tenant TEXT PRIMARY KEY, changed_us INTEGER NOT NULL, event BLOB NOT NULL
) WITHOUT ROWID;
"""

_TOPIC_OF_TABLE = {
    "statuses": "jobs.status",
    "results": "results.completed",
    "indexed": "documents.indexed",
    "redriven": "dead_letters.redriven",
    "reviews": "reviews.requested",
    "decisions": "reviews.decided",
    "cancels": "cancellations.requested",
    "submissions": "requests.submitted",
    "deltas": "results.delta",
}
_RETENTION_MS = {topic.name: topic.retention_ms for topic in CATALOGUE}

RETENTION_MS = {table: _RETENTION_MS[topic] for table, topic in _TOPIC_OF_TABLE.items()} | {
    "letters": dead_letter_topics()[0].retention_ms
}
"""By table. `usage` and `budgets` have one row per key, and are kept as their topics are: for good."""
