-- The tables of messages.db; docs/design/collector.md. Times are integer milliseconds since the epoch, UTC.
-- Tables of duplicates' keys, seen_<day>, are made as they are needed: CREATE TABLE seen_1020415000 (key BLOB PRIMARY KEY) WITHOUT ROWID

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

-- The tables of keys in the order in which they were made. day: 10^9, and 1000 for each day since 1970 up to the table's first one, and
-- one more for each further table of the same days; begun_at: when the table was made; keys: how many it holds; days: how many it is for.
CREATE TABLE seen_day (
    made INTEGER PRIMARY KEY AUTOINCREMENT,
    day INTEGER NOT NULL UNIQUE,
    begun_at INTEGER NOT NULL DEFAULT 0,
    keys INTEGER NOT NULL DEFAULT 0,
    days INTEGER NOT NULL DEFAULT 1
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
