-- The tables of settings.db; docs/design/collector.md. Times are integer milliseconds since the epoch, UTC.

CREATE TABLE meta (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    created_at INTEGER NOT NULL,
    token_key BLOB NOT NULL
);

-- A revoked token stays, so that its name is not given again.
CREATE TABLE token (
    name TEXT PRIMARY KEY,
    purpose TEXT NOT NULL,
    senders TEXT NOT NULL,
    serials TEXT NOT NULL,
    hash BLOB NOT NULL UNIQUE,
    added_at INTEGER NOT NULL,
    revoked_at INTEGER
);

-- rule: the JSON of the protocol's rule, its fields in the protocol's order.
CREATE TABLE rule (
    rule_id INTEGER PRIMARY KEY AUTOINCREMENT,
    rule TEXT NOT NULL UNIQUE,
    added_at INTEGER NOT NULL,
    hits INTEGER NOT NULL DEFAULT 0
);
