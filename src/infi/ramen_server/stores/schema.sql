-- The tables of messages.db; docs/design/collector.md. Times are integer milliseconds since the epoch, UTC.
-- Tables of duplicates' keys, seen_<day>, are made as days come: CREATE TABLE seen_20415 (key BLOB PRIMARY KEY) WITHOUT ROWID

CREATE TABLE message (
    position INTEGER PRIMARY KEY,
    received_at INTEGER NOT NULL,
    category TEXT NOT NULL,
    system_serial INTEGER NOT NULL,
    sender TEXT NOT NULL,
    data_type TEXT NOT NULL,
    data_version TEXT NOT NULL,
    system_version TEXT NOT NULL,
    reqid TEXT NOT NULL,
    token TEXT NOT NULL,
    payload TEXT NOT NULL
);

CREATE INDEX message_received ON message (received_at);

-- The tables of keys in the order in which they were made; day: days since 1970.
CREATE TABLE seen_day (
    made INTEGER PRIMARY KEY AUTOINCREMENT,
    day INTEGER NOT NULL UNIQUE
);

CREATE TABLE book (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    created_at INTEGER NOT NULL,
    key BLOB NOT NULL,
    last_position INTEGER NOT NULL DEFAULT 0,
    messages INTEGER NOT NULL DEFAULT 0,
    payload_bytes INTEGER NOT NULL DEFAULT 0,
    duplicates INTEGER NOT NULL DEFAULT 0
);
