-- The tables of a 2.x queue file. docs/design/queue-file.md says why each is as it is.
-- Every statement must parse in the SQLite of 2012 (3.7.17): a 1.x writer on the same host reads this schema too.
-- Times are integer milliseconds since the epoch, UTC. Never change a statement: later versions only add.

-- The 1.x table. 2.0 never pushes into it: it is the inlet for backlogs and for 1.x writers that still run.
CREATE TABLE IF NOT EXISTS queue (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    ts TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
    category TEXT NOT NULL,
    data_type TEXT NOT NULL,
    data_version INTEGER NOT NULL,
    reqid TEXT,
    data BLOB NOT NULL
);

-- What this file is; one row. Whoever adds a table later adds its pages to empty_pages.
CREATE TABLE meta (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    min_reader INTEGER NOT NULL,
    min_writer INTEGER NOT NULL,
    queue_id TEXT NOT NULL,
    sender TEXT NOT NULL,
    system_serial INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    inlet_boundary INTEGER NOT NULL,
    inlet_system_version TEXT NOT NULL,
    empty_pages INTEGER NOT NULL
);

-- The waiting messages, in order of position.
CREATE TABLE message (
    position INTEGER PRIMARY KEY,
    category TEXT NOT NULL,
    data_type TEXT NOT NULL,
    data_version NOT NULL,
    system_version TEXT NOT NULL,
    reqid TEXT NOT NULL,
    reqid_origin INTEGER NOT NULL,
    pushed_at INTEGER NOT NULL,
    plain_length INTEGER NOT NULL,
    plain_crc32 INTEGER NOT NULL,
    row_crc32 INTEGER NOT NULL,
    retried_at INTEGER,
    data BLOB NOT NULL
);

-- Messages that the server refused for good. The position brings a retried one back to its place.
CREATE TABLE dead_letter (
    position INTEGER PRIMARY KEY,
    category TEXT NOT NULL,
    data_type TEXT NOT NULL,
    data_version NOT NULL,
    system_version TEXT NOT NULL,
    reqid TEXT NOT NULL,
    reqid_origin INTEGER NOT NULL,
    pushed_at INTEGER NOT NULL,
    plain_length INTEGER NOT NULL,
    plain_crc32 INTEGER NOT NULL,
    row_crc32 INTEGER NOT NULL,
    died_at INTEGER NOT NULL,
    reason TEXT NOT NULL,
    status INTEGER,
    code TEXT,
    details TEXT NOT NULL,
    data BLOB NOT NULL
);

-- The dead letters of the present run of rejections without a protocol body: they may yet go back.
CREATE TABLE unexplained (
    position INTEGER PRIMARY KEY,
    origin TEXT NOT NULL
);

-- What the reader holds: trimming and purging pass over these positions.
CREATE TABLE flight (
    position INTEGER PRIMARY KEY,
    batch_id INTEGER,
    place INTEGER,
    sent_v1 INTEGER NOT NULL
);

-- Protocol version 2: frozen batches and the lanes that number them.
CREATE TABLE lane (
    lane TEXT PRIMARY KEY,
    origin TEXT NOT NULL,
    next_number INTEGER NOT NULL,
    opened_at INTEGER NOT NULL
);

CREATE TABLE batch (
    batch_id INTEGER PRIMARY KEY,
    lane TEXT NOT NULL,
    number INTEGER NOT NULL,
    framing INTEGER NOT NULL,
    digest TEXT NOT NULL,
    messages INTEGER NOT NULL,
    frozen_at INTEGER NOT NULL,
    attempts INTEGER NOT NULL
);

-- Streams that were told to wait.
CREATE TABLE stream (
    category TEXT NOT NULL,
    data_type TEXT NOT NULL,
    waiting_since INTEGER NOT NULL,
    retry_at INTEGER NOT NULL,
    last_error TEXT NOT NULL,
    PRIMARY KEY (category, data_type)
);

-- Messages that were tried and did not get through.
CREATE TABLE attempt (
    position INTEGER PRIMARY KEY,
    attempts INTEGER NOT NULL,
    first_at INTEGER NOT NULL,
    retry_at INTEGER,
    last_status INTEGER,
    last_error TEXT NOT NULL
);

-- The blacklist: rules that the server sent.
CREATE TABLE rule (
    rule_id INTEGER PRIMARY KEY,
    category TEXT,
    system_serial TEXT,
    sender TEXT,
    data_type TEXT,
    data_version TEXT,
    system_version TEXT,
    added_at INTEGER NOT NULL,
    last_seen_at INTEGER NOT NULL,
    hits INTEGER NOT NULL
);

-- What was learned about each server, by origin (https://host:port).
CREATE TABLE server (
    origin TEXT PRIMARY KEY,
    accept_encoding TEXT,
    batch_offer TEXT,
    batch_refused_at INTEGER,
    body_limit INTEGER,
    body_limit_at INTEGER,
    failures INTEGER NOT NULL,
    suspect_since INTEGER,
    retry_at INTEGER,
    learned_at INTEGER NOT NULL
);

-- The active reader's state, for `status`; one row, written when something happens, never by an idle reader. The last five are
-- the clocks by which messages expire: null where they never did.
CREATE TABLE reader (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    pid INTEGER,
    started_at INTEGER,
    stopped_at INTEGER,
    failures INTEGER NOT NULL,
    failing_since INTEGER,
    last_success_at INTEGER,
    last_error_at INTEGER,
    last_error TEXT,
    last_status INTEGER,
    retry_at INTEGER,
    clock_boot TEXT,
    clock_wall INTEGER,
    clock_steady INTEGER,
    counted_position INTEGER,
    counted_from INTEGER
);

-- Damaged files that were put aside: how much of what can be read of each has been carried into this one.
CREATE TABLE salvage (
    file TEXT PRIMARY KEY,
    done INTEGER NOT NULL,
    tally TEXT NOT NULL
);

-- The books; one row. Rows of message above last_position are pushes that are not entered yet: whoever removes a row or
-- adds one otherwise enters them first, in the same transaction.
CREATE TABLE book (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    last_position INTEGER NOT NULL DEFAULT 0,
    pushed INTEGER NOT NULL DEFAULT 0,
    waiting INTEGER NOT NULL DEFAULT 0,
    accepted INTEGER NOT NULL DEFAULT 0,
    dropped INTEGER NOT NULL DEFAULT 0,
    blacklisted INTEGER NOT NULL DEFAULT 0,
    dead INTEGER NOT NULL DEFAULT 0,
    dead_bytes INTEGER NOT NULL DEFAULT 0,
    dead_discarded INTEGER NOT NULL DEFAULT 0,
    trimmed INTEGER NOT NULL DEFAULT 0,
    expired INTEGER NOT NULL DEFAULT 0,
    purged INTEGER NOT NULL DEFAULT 0,
    damaged INTEGER NOT NULL DEFAULT 0,
    found INTEGER NOT NULL DEFAULT 0,
    returned INTEGER NOT NULL DEFAULT 0,
    maybe_twice INTEGER NOT NULL DEFAULT 0,
    doubtful_position INTEGER NOT NULL DEFAULT 0,
    inlet_base INTEGER,
    inlet_in INTEGER NOT NULL DEFAULT 0,
    inlet_out INTEGER NOT NULL DEFAULT 0,
    inlet_moved INTEGER NOT NULL DEFAULT 0,
    inlet_seen_at INTEGER
);

-- The inlet's books: a 1.x writer runs these without knowing.
CREATE TRIGGER inlet_filled AFTER INSERT ON queue BEGIN
    UPDATE book SET inlet_in = inlet_in + 1, inlet_seen_at = 1000 * strftime('%s', 'now') WHERE id = 1;
END;

CREATE TRIGGER inlet_emptied AFTER DELETE ON queue BEGIN
    UPDATE book SET inlet_out = inlet_out + 1 WHERE id = 1;
END;
