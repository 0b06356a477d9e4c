"""Every SQL statement of the queue but the schema, which stands in ``schema.sql``."""

from __future__ import annotations

from importlib.resources import files
from typing import Final

SCHEMA: Final = files(__package__).joinpath("schema.sql").read_text(encoding="utf-8")

_IDENTITY: Final = "category, data_type, data_version, system_version, reqid, reqid_origin, pushed_at, plain_length, plain_crc32, row_crc32"

# A flipped bit must not make a row unreadable, whatever type it gives a value: text comes as bytes, which ``_rows`` decodes and
# checks, and the rest as what it should be.
_READ_IDENTITY: Final = (
    "CAST(category AS BLOB), CAST(data_type AS BLOB), "
    "CASE typeof(data_version) WHEN 'integer' THEN data_version ELSE CAST(data_version AS BLOB) END, "
    "CAST(system_version AS BLOB), CAST(reqid AS BLOB), CAST(reqid_origin AS INTEGER), CAST(pushed_at AS INTEGER), "
    "CAST(plain_length AS INTEGER), CAST(plain_crc32 AS INTEGER), CAST(row_crc32 AS INTEGER)"
)
_READ_DATA: Final = "CAST(data AS BLOB)"

BEGIN: Final = "BEGIN IMMEDIATE"
COMMIT: Final = "COMMIT"
ROLLBACK: Final = "ROLLBACK"
PAGE_COUNT: Final = "PRAGMA page_count"
FREELIST_COUNT: Final = "PRAGMA freelist_count"
DATA_VERSION: Final = "PRAGMA data_version"
SCHEMA_VERSION: Final = "PRAGMA schema_version"
VACUUM_STEP: Final = "PRAGMA incremental_vacuum(256)"
BEGIN_READING: Final = "BEGIN"
INTEGRITY: Final = "PRAGMA integrity_check(10)"

# Opening, making, taking over
APPLICATION_ID: Final = 0x52414D4E
FORMAT: Final = 2
SCHEMA_SIZE: Final = "SELECT count(*) FROM sqlite_schema"
INLET_COLUMNS: Final = "SELECT group_concat(name ORDER BY cid) FROM pragma_table_info('queue')"
META_COLUMNS: Final = "SELECT coalesce(group_concat(name ORDER BY cid), '') FROM pragma_table_info('meta')"
COLUMNS_OF_META: Final = "id,min_reader,min_writer,queue_id,sender,system_serial"
COLUMNS_OF_1X: Final = "id,ts,category,data_type,data_version,reqid,data"
READ_QUEUE_ID: Final = "SELECT CAST(queue_id AS BLOB) FROM meta WHERE id = 1"
VACUUM: Final = "VACUUM"
READ_META: Final = "SELECT min_reader, min_writer, queue_id, inlet_boundary, inlet_system_version, empty_pages FROM meta WHERE id = 1"
INSERT_META: Final = (
    "INSERT INTO meta (id, min_reader, min_writer, queue_id, sender, system_serial, created_at, created_by, "
    "inlet_boundary, inlet_system_version, empty_pages) VALUES (1, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
SET_EMPTY_PAGES: Final = "UPDATE meta SET empty_pages = ? WHERE id = 1"
INSERT_BOOK: Final = "INSERT INTO book (id, inlet_base, last_position) VALUES (1, ?, ?)"
INLET_UNCOUNTED: Final = "SELECT inlet_base IS NULL FROM book WHERE id = 1"
COUNT_INLET: Final = "SELECT (SELECT count(*) FROM queue) - inlet_in + inlet_out FROM book WHERE id = 1"
SET_INLET_BASE: Final = "UPDATE book SET inlet_base = ? WHERE id = 1 AND inlet_base IS NULL"
READER_IS_MISSING: Final = "SELECT NOT EXISTS (SELECT 1 FROM reader WHERE id = 1)"
INSERT_READER: Final = "INSERT INTO reader (id, failures) VALUES (1, 0)"
SEED_INLET_SEQUENCE: Final = "INSERT INTO sqlite_sequence (name, seq) VALUES ('queue', ?)"

# Pushing and trimming
_LAST: Final = "CAST(last_position AS INTEGER)"  # whatever a flipped bit made of it
_HEAD: Final = f"max({_LAST}, coalesce((SELECT max(position) FROM message), 0))"  # noqa: S608
HEAD: Final = f"SELECT {_HEAD} FROM book WHERE id = 1"  # noqa: S608
ENTER_PUSHES: Final = (
    f"UPDATE book SET pushed = pushed + {_HEAD} - last_position, waiting = waiting + {_HEAD} - last_position, "  # noqa: S608
    f"last_position = {_HEAD} WHERE id = 1 AND {_LAST} < {_HEAD}"
)
INSERT_MESSAGE: Final = (
    f"INSERT INTO message (position, {_IDENTITY}, data) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608
)
OLDEST_TO_TRIM: Final = (
    "SELECT position, octet_length(data) FROM message "
    "WHERE position < ? AND position NOT IN (SELECT position FROM flight) ORDER BY position LIMIT ?"
)
TRIM_UP_TO: Final = (
    "DELETE FROM message WHERE position <= ? AND position NOT IN (SELECT position FROM flight)"
)
COUNT_TRIMMED: Final = "UPDATE book SET trimmed = trimmed + ?1, waiting = waiting - ?1 WHERE id = 1"
OLDEST_INLET_TO_TRIM: Final = "SELECT id, octet_length(data) FROM queue WHERE id <= ? ORDER BY id LIMIT ?"
TRIM_INLET_UP_TO: Final = "DELETE FROM queue WHERE id <= ?"
COUNT_INLET_TRIMMED: Final = (
    "UPDATE book SET trimmed = trimmed + ?1, inlet_moved = inlet_moved + ?1 WHERE id = 1"
)

# Counting
_INLET: Final = "coalesce(inlet_base, 0) + inlet_in - inlet_out"
# Numbers whatever a flipped bit made of them: ``checking`` sets them right.
READ_BOOK: Final = "SELECT {} FROM book WHERE id = 1".format(  # noqa: S608
    ", ".join(
        f"coalesce(CAST({value} AS INTEGER), 0)"
        for value in (
            f"pushed + {_HEAD} - last_position + coalesce(inlet_base, 0) + inlet_in",
            f"waiting + {_HEAD} - last_position",
            _INLET,
            *(
                "accepted",
                "dropped",
                "blacklisted",
                "dead",
                "dead_discarded",
                "trimmed",
                "expired",
                "purged",
                "damaged",
            ),
            "inlet_out - inlet_moved",
            *("found", "maybe_twice", "dead_bytes"),
        )
    )
)
WAITING: Final = (
    f"SELECT CAST(waiting + {_HEAD} - last_position + {_INLET} AS INTEGER) FROM book WHERE id = 1"  # noqa: S608
)
COUNT_ROWS: Final = (
    "SELECT (SELECT count(*) FROM message), (SELECT count(*) FROM queue), (SELECT count(*) FROM dead_letter), "
    "(SELECT coalesce(sum(octet_length(data)), 0) FROM dead_letter)"
)
_COUNTERS: Final = (
    *(
        "last_position",
        "pushed",
        "waiting",
        "accepted",
        "dropped",
        "blacklisted",
        "dead",
        "dead_bytes",
        "dead_discarded",
        "trimmed",
    ),
    *(
        "expired",
        "purged",
        "damaged",
        "found",
        "returned",
        "maybe_twice",
        "doubtful_position",
        "inlet_in",
        "inlet_out",
        "inlet_moved",
    ),
)
_MOST: Final = 2**60  # a few of them can be added up
NORMALISE_BOOK: Final = (
    "UPDATE book SET "  # noqa: S608
    + "".join(f"{name} = min(max(coalesce(CAST({name} AS INTEGER), 0), 0), {_MOST}), " for name in _COUNTERS)
    + f"inlet_base = min(max(CAST(inlet_base AS INTEGER), -{_MOST}), {_MOST}) WHERE id = 1"
)
BOOK_HAS_NULL: Final = f"SELECT ({' + '.join(_COUNTERS)}) IS NULL FROM book WHERE id = 1"  # noqa: S608
NORMALISE_INLET_MOVED: Final = (
    "UPDATE book SET inlet_moved = inlet_out WHERE id = 1 AND inlet_moved > inlet_out"
)
CORRECT_BOOK: Final = "UPDATE book SET waiting = waiting + ?, inlet_base = inlet_base + ?, dead = dead + ?, dead_bytes = dead_bytes + ? WHERE id = 1"
COUNT_UNEXPLAINED_DIFFERENCE: Final = "UPDATE book SET found = found + ?, damaged = damaged + ? WHERE id = 1"
ANY_UP_TO: Final = "SELECT EXISTS (SELECT 1 FROM message WHERE position <= ?1) OR EXISTS (SELECT 1 FROM queue WHERE id <= ?2)"
INLET_LAST_ID: Final = "SELECT coalesce(max(id), 0) FROM queue"

# The inlet
INLET_FILLED: Final = "SELECT EXISTS (SELECT 1 FROM queue)"
OLDEST_IN_INLET: Final = (
    "SELECT id, 1000 * CAST(strftime('%s', ts) AS INTEGER), CAST(category AS BLOB), CAST(data_type AS BLOB), "
    "CASE typeof(data_version) WHEN 'integer' THEN data_version ELSE CAST(data_version AS BLOB) END, "
    "CAST(reqid AS BLOB), CAST(data AS BLOB) FROM queue ORDER BY id LIMIT ?"
)
DELETE_FROM_INLET: Final = "DELETE FROM queue WHERE id <= ?"
COUNT_INLET_MOVED: Final = (
    "UPDATE book SET inlet_moved = inlet_moved + ?1, waiting = waiting + ?1 WHERE id = 1"
)
COUNT_INLET_BURIED: Final = "UPDATE book SET inlet_moved = inlet_moved + 1, dead = dead + 1, dead_bytes = dead_bytes + ?1 WHERE id = 1"
NEXT_POSITION: Final = (
    "UPDATE book SET last_position = last_position + 1 WHERE id = 1 RETURNING last_position"
)

# Reading
_NOT_FROZEN: Final = "position NOT IN (SELECT position FROM flight WHERE batch_id IS NOT NULL)"
ANY_WAITING: Final = "SELECT EXISTS (SELECT 1 FROM message) OR EXISTS (SELECT 1 FROM queue)"
LOOK_AHEAD: Final = (
    f"SELECT position, {_READ_IDENTITY}, {_READ_DATA} FROM message "  # noqa: S608
    f"WHERE position > :after AND position <= :end AND {_NOT_FROZEN} ORDER BY position LIMIT :rows"
)
# A name holds no blank, so the two names of a stream are told apart; what is damaged is of no stream.
_STREAM: Final = "category || ' ' || data_type"
LOOK_AHEAD_PASSING_OVER: Final = (
    f"SELECT position, {_READ_IDENTITY}, {_READ_DATA} FROM message "  # noqa: S608
    f"WHERE position > :after AND position <= :end AND ({_STREAM} IS NULL OR {_STREAM} NOT IN (SELECT value FROM json_each(:streams))) "
    f"AND {_NOT_FROZEN} ORDER BY position LIMIT :rows"
)
LOOK_AT_STREAM: Final = (
    f"SELECT position, {_READ_IDENTITY}, {_READ_DATA} FROM message "  # noqa: S608
    "WHERE position > :after AND position <= :end AND category = :category AND data_type = :data_type "
    f"AND {_NOT_FROZEN} ORDER BY position LIMIT :rows"
)
FIRST_FREE: Final = (
    f"SELECT position, {_READ_IDENTITY}, {_READ_DATA} FROM message "  # noqa: S608
    "WHERE position NOT IN (SELECT position FROM flight WHERE ?1 OR batch_id IS NOT NULL) ORDER BY position LIMIT 1"
)
WAITING_AFTER: Final = (
    "SELECT (SELECT min(position) FROM message WHERE position > ?), (SELECT max(position) FROM message)"
)
BROUGHT_BACK: Final = "SELECT returned + found FROM book WHERE id = 1"
BACKLOG_LEFT: Final = "SELECT EXISTS (SELECT 1 FROM queue WHERE id <= ?)"
LEASE: Final = (
    "INSERT INTO flight (position, sent_v1) SELECT position, 1 FROM message WHERE position = ? AND reqid = ? "
    "ON CONFLICT (position) DO UPDATE SET sent_v1 = 1 WHERE batch_id IS NULL"
)
LEASES: Final = "SELECT position FROM flight WHERE batch_id IS NULL"
VOID_LEASES: Final = (
    "DELETE FROM flight WHERE batch_id IS NULL AND (position NOT IN (SELECT value FROM json_each(?)) "
    "OR position NOT IN (SELECT position FROM message))"
)
END_FLIGHT: Final = "DELETE FROM flight WHERE position = ?"
DELETE_MESSAGE: Final = "DELETE FROM message WHERE position = ? AND reqid = ?"
DELETE_DAMAGED: Final = "DELETE FROM message WHERE position = ?"
COUNT_SETTLED: Final = (
    "UPDATE book SET waiting = waiting - ?1, accepted = accepted + ?2, dropped = dropped + ?3, "
    "blacklisted = blacklisted + ?4, purged = purged + ?5, dead = dead + ?6, dead_bytes = dead_bytes + ?7 WHERE id = 1"
)

# Dead letters
_DEATH: Final = "died_at, reason, status, code, details"
INSERT_DEAD: Final = (
    f"INSERT INTO dead_letter (position, {_IDENTITY}, data, {_DEATH}) "  # noqa: S608
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
OLDEST_DEAD: Final = (
    "SELECT position, octet_length(data) FROM dead_letter WHERE position NOT IN (SELECT position FROM unexplained) "
    "ORDER BY position LIMIT 1"
)
OLDEST_DEAD_BUT_ONE: Final = (
    "SELECT position, octet_length(data) FROM dead_letter WHERE position NOT IN (SELECT position FROM unexplained) "
    "AND position < (SELECT max(position) FROM dead_letter) ORDER BY position LIMIT 1"
)
DELETE_DEAD: Final = "DELETE FROM dead_letter WHERE position = ?"
DEAD_BYTES: Final = "SELECT dead_bytes FROM book WHERE id = 1"
COUNT_DEAD_DISCARDED: Final = "UPDATE book SET dead = dead - ?1, dead_discarded = dead_discarded + ?1, dead_bytes = dead_bytes - ?2 WHERE id = 1"
LIST_DEAD: Final = (
    f"SELECT position, {_READ_IDENTITY}, {_READ_DATA}, CAST(died_at AS INTEGER), CAST(reason AS BLOB), "  # noqa: S608
    "CAST(status AS INTEGER), CAST(code AS BLOB), CAST(details AS BLOB) FROM dead_letter ORDER BY position LIMIT ?"
)
RAISE_DEAD: Final = (
    f"INSERT INTO message (position, {_IDENTITY}, retried_at, data) "  # noqa: S608
    f"SELECT position, {_IDENTITY}, ?, data FROM dead_letter WHERE position = ? AND plain_length >= 0"
)
DEAD_LENGTH: Final = "SELECT octet_length(data) FROM dead_letter WHERE position = ?"
COUNT_DEAD_RAISED: Final = "UPDATE book SET dead = dead - 1, dead_bytes = dead_bytes - ?1, waiting = waiting + 1, returned = returned + 1 WHERE id = 1"
DELETE_ALL_DEAD: Final = "DELETE FROM dead_letter"
COUNT_ALL_DEAD_DISCARDED: Final = (
    "UPDATE book SET dead_discarded = dead_discarded + ?1, dead = dead - ?1, dead_bytes = 0 WHERE id = 1"
)
NOTE_UNEXPLAINED: Final = "INSERT OR IGNORE INTO unexplained (position, origin) VALUES (?, ?)"
READ_UNEXPLAINED: Final = "SELECT position FROM unexplained WHERE origin = ? ORDER BY position"
CLEAR_UNEXPLAINED: Final = "DELETE FROM unexplained"
END_UNEXPLAINED: Final = "DELETE FROM unexplained WHERE origin = ?"
FORGET_UNEXPLAINED: Final = "DELETE FROM unexplained WHERE position = ?"

# Rules
READ_RULES: Final = (
    "SELECT rule_id, CAST(category AS BLOB), CAST(system_serial AS BLOB), CAST(sender AS BLOB), CAST(data_type AS BLOB), "
    "CAST(data_version AS BLOB), CAST(system_version AS BLOB), CAST(added_at AS INTEGER), CAST(last_seen_at AS INTEGER), "
    "CAST(hits AS INTEGER) FROM rule ORDER BY rule_id"
)
ADD_RULE: Final = (
    "INSERT INTO rule (category, system_serial, sender, data_type, data_version, system_version, added_at, last_seen_at, "
    "hits) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0) RETURNING rule_id"
)
REFRESH_RULE: Final = "UPDATE rule SET last_seen_at = ? WHERE rule_id = ?"
HIT_RULE: Final = "UPDATE rule SET hits = hits + ? WHERE rule_id = ?"
DELETE_RULE: Final = "DELETE FROM rule WHERE rule_id = ?"

# What was learned about a server
READ_SERVER: Final = (
    "SELECT CAST(failures AS INTEGER), CAST(suspect_since AS INTEGER), CAST(retry_at AS INTEGER), "
    "CAST(accept_encoding AS BLOB), CAST(batch_offer AS BLOB), CAST(batch_refused_at AS INTEGER), "
    "CAST(body_limit AS INTEGER), CAST(body_limit_at AS INTEGER) FROM server WHERE origin = ?"
)
SAVE_SERVER: Final = (
    "INSERT INTO server (origin, failures, suspect_since, retry_at, accept_encoding, batch_offer, batch_refused_at, body_limit, "
    "body_limit_at, learned_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) ON CONFLICT (origin) DO UPDATE SET failures = ?2, "
    "suspect_since = ?3, retry_at = ?4, accept_encoding = ?5, batch_offer = ?6, batch_refused_at = ?7, body_limit = ?8, "
    "body_limit_at = ?9, learned_at = ?10"
)

# Frozen batches and their lanes
READ_LANES: Final = "SELECT CAST(lane AS BLOB) FROM lane WHERE origin = ? AND lane NOT IN (SELECT lane FROM batch) ORDER BY opened_at"
FORGET_OTHER_LANES: Final = "DELETE FROM lane WHERE origin <> ? AND lane NOT IN (SELECT lane FROM batch)"
NEXT_NUMBER: Final = (
    "INSERT INTO lane (lane, origin, next_number, opened_at) VALUES (?1, ?2, 2, ?3) "
    "ON CONFLICT (lane) DO UPDATE SET next_number = next_number + 1 RETURNING next_number - 1"
)
END_LANE: Final = "DELETE FROM lane WHERE lane = ?"
FREEZE: Final = "INSERT INTO batch (lane, number, framing, digest, messages, frozen_at, attempts) VALUES (?, ?, ?, ?, ?, ?, 0) RETURNING batch_id"
FREEZE_MEMBER: Final = (
    "INSERT OR REPLACE INTO flight (position, batch_id, place, sent_v1) "
    "SELECT position, ?, ?, 0 FROM message WHERE position = ? AND reqid = ?"
)
READ_BATCHES: Final = (
    "SELECT batch_id, CAST(lane AS BLOB), CAST(number AS INTEGER), CAST(framing AS INTEGER), CAST(digest AS BLOB), "
    "CAST(messages AS INTEGER) FROM batch ORDER BY batch_id"
)
READ_MEMBERS: Final = (
    f"SELECT flight.position, {_READ_IDENTITY}, {_READ_DATA} FROM flight CROSS JOIN message USING (position) "  # noqa: S608
    "WHERE flight.batch_id = ? ORDER BY flight.place"
)
END_BATCH: Final = "DELETE FROM batch WHERE batch_id = ?"
END_MEMBERS: Final = "DELETE FROM flight WHERE batch_id = ?"
COUNT_MEMBERS: Final = (
    "SELECT count(*) FROM flight CROSS JOIN message USING (position) WHERE flight.batch_id = ?"
)
COUNT_MAYBE_TWICE: Final = "UPDATE book SET maybe_twice = maybe_twice + ? WHERE id = 1"

# Streams that wait, and their heads
WAITING_STREAMS: Final = (
    "SELECT CAST(category AS BLOB), CAST(data_type AS BLOB), CAST(waiting_since AS INTEGER), CAST(retry_at AS INTEGER), "
    "CAST(last_error AS BLOB), (SELECT coalesce(max(CAST(attempts AS INTEGER)), 0) FROM attempt CROSS JOIN message USING (position) "
    "WHERE message.category = stream.category AND message.data_type = stream.data_type) "
    "FROM stream ORDER BY waiting_since LIMIT ?"
)
HEAD_OF_STREAM: Final = (
    f"SELECT position, {_READ_IDENTITY}, {_READ_DATA} FROM message "  # noqa: S608
    "WHERE category = :category AND data_type = :data_type AND position NOT IN "
    "(SELECT position FROM flight WHERE :reader_lives OR batch_id IS NOT NULL) ORDER BY position LIMIT 1"
)
IS_HELD: Final = "SELECT EXISTS (SELECT 1 FROM flight WHERE position = :position AND (:reader_lives OR batch_id IS NOT NULL))"
STREAM_WAITS: Final = (
    "INSERT INTO stream (category, data_type, waiting_since, retry_at, last_error) VALUES (?1, ?2, ?3, ?4, ?5) "
    "ON CONFLICT (category, data_type) DO UPDATE SET retry_at = ?4, last_error = ?5"
)
STREAM_FLOWS: Final = "DELETE FROM stream WHERE category = ? AND data_type = ?"
NOTE_ATTEMPT: Final = (
    "INSERT INTO attempt (position, attempts, first_at, retry_at, last_status, last_error) VALUES (?1, 1, ?2, ?3, ?4, ?5) "
    "ON CONFLICT (position) DO UPDATE SET attempts = attempts + 1, retry_at = ?3, last_status = ?4, last_error = ?5 "
    "RETURNING attempts"
)
END_ATTEMPT: Final = "DELETE FROM attempt WHERE position = ?"
FORGET_ATTEMPTS: Final = "DELETE FROM attempt WHERE position NOT IN (SELECT position FROM message)"

# The reader's state
READER_STARTED: Final = "UPDATE reader SET pid = ?, started_at = ?, stopped_at = NULL WHERE id = 1"
READER_STOPPED: Final = "UPDATE reader SET stopped_at = ? WHERE id = 1"
READER_SUCCEEDED: Final = (
    "UPDATE reader SET last_success_at = ?, failures = 0, failing_since = NULL, retry_at = NULL WHERE id = 1"
)
READER_FAILED: Final = (
    "UPDATE reader SET failures = failures + 1, failing_since = coalesce(failing_since, ?1), last_error_at = ?1, "
    "last_error = ?2, last_status = ?3, retry_at = ?4 WHERE id = 1"
)
NEXT_ATTEMPT: Final = "SELECT retry_at FROM reader WHERE id = 1"
READ_READER: Final = (
    "SELECT CAST(pid AS INTEGER), CAST(started_at AS INTEGER), CAST(stopped_at AS INTEGER), CAST(failures AS INTEGER), "
    "CAST(failing_since AS INTEGER), CAST(last_success_at AS INTEGER), CAST(last_error_at AS INTEGER), CAST(last_error AS BLOB), "
    "CAST(last_status AS INTEGER), CAST(retry_at AS INTEGER) FROM reader WHERE id = 1"
)

# What operators see and do: inspection
READ_OWNER: Final = "SELECT CAST(sender AS BLOB), CAST(system_serial AS INTEGER) FROM meta WHERE id = 1"
FACTS_OF_1X: Final = (
    "SELECT coalesce((SELECT max(id) FROM queue) - (SELECT min(id) FROM queue) + 1, 0), "
    "(SELECT ts FROM queue ORDER BY id LIMIT 1)"
)
COUNT_FLIGHT: Final = "SELECT count(*) FROM flight"
# Retried dead letters stand at the front under their old positions; the first that is none bounds the search.
OLDEST_WAITING_SINCE: Final = (
    "SELECT min(since) FROM ("
    "SELECT min(CAST(coalesce(retried_at, pushed_at) AS INTEGER)) AS since FROM message WHERE position <= "
    "coalesce((SELECT position FROM message WHERE retried_at IS NULL ORDER BY position LIMIT 1), 9223372036854775807) "
    "UNION ALL SELECT * FROM (SELECT 1000 * CAST(strftime('%s', ts) AS INTEGER) FROM queue ORDER BY id LIMIT 1))"
)
READ_INLET_SEEN: Final = "SELECT inlet_seen_at FROM book WHERE id = 1"
LATEST_SERVER: Final = (
    "SELECT origin, failures, suspect_since, retry_at FROM server ORDER BY learned_at DESC LIMIT 1"
)
CHECK_PAGE: Final = f"SELECT position, {_READ_IDENTITY}, {_READ_DATA} FROM message WHERE position > ? ORDER BY position LIMIT ?"  # noqa: S608

# What operators see and do: purging. A step goes from :after (not part of it) to :end; a part of the selection that is null does not
# matter; a reader that does not live holds no leases.
_WAITING_MATCHES: Final = (
    "(:category IS NULL OR category = :category) AND (:data_type IS NULL OR data_type = :data_type) "
    "AND (:before IS NULL OR CAST(coalesce(retried_at, pushed_at) AS INTEGER) < :before)"
)
_HELD: Final = "position IN (SELECT position FROM flight WHERE :reader_lives OR batch_id IS NOT NULL)"
PURGE_PAGE: Final = (
    f"SELECT position, octet_length(data), {_WAITING_MATCHES}, {_HELD} FROM message "  # noqa: S608
    "WHERE position > :after AND position <= :end ORDER BY position LIMIT :rows"
)
COUNT_HELD: Final = f"SELECT count(*) FROM message WHERE position > :after AND position <= :end AND {_WAITING_MATCHES} AND {_HELD}"  # noqa: S608
PURGE: Final = (
    f"DELETE FROM message WHERE position > :after AND position <= :end AND {_WAITING_MATCHES} AND NOT {_HELD}"  # noqa: S608
)
_INLET_MATCHES: Final = (
    "(:category IS NULL OR category = :category) AND (:data_type IS NULL OR data_type = :data_type) "
    "AND (:before IS NULL OR 1000 * CAST(strftime('%s', ts) AS INTEGER) < :before)"
)
PURGE_INLET_PAGE: Final = (
    f"SELECT id, octet_length(data), {_INLET_MATCHES}, 0 FROM queue "  # noqa: S608
    "WHERE id > :after AND id <= :end ORDER BY id LIMIT :rows"
)
PURGE_INLET: Final = f"DELETE FROM queue WHERE id > :after AND id <= :end AND {_INLET_MATCHES}"  # noqa: S608
COUNT_INLET_PURGED: Final = (
    "UPDATE book SET purged = purged + ?1, inlet_moved = inlet_moved + ?1 WHERE id = 1"
)

# What operators see and do: dead letters
_DEAD_MATCHES: Final = (
    "(:category IS NULL OR category = :category) AND (:data_type IS NULL OR data_type = :data_type) "
    "AND (:before IS NULL OR CAST(died_at AS INTEGER) < :before)"
)
_READ_DEAD_HEAD: Final = (
    f"position, {_READ_IDENTITY}, octet_length(data), CAST(died_at AS INTEGER), CAST(reason AS BLOB), "
    "CAST(status AS INTEGER), CAST(code AS BLOB), CAST(details AS BLOB)"
)
DEAD_HEADS: Final = (
    f"SELECT {_READ_DEAD_HEAD} FROM dead_letter "  # noqa: S608
    f"WHERE position > :after AND {_DEAD_MATCHES} ORDER BY position LIMIT :rows"
)
DEAD_HEAD: Final = f"SELECT {_READ_DEAD_HEAD} FROM dead_letter WHERE position = ?"  # noqa: S608
READ_DEAD: Final = f"SELECT position, {_READ_IDENTITY}, {_READ_DATA} FROM dead_letter WHERE position = ?"  # noqa: S608
DEAD_POSITIONS: Final = "SELECT position FROM dead_letter ORDER BY position"

# Expiring
_RETRIED_AT: Final = "CAST(retried_at AS INTEGER)"
TOO_OLD: Final = (
    "SELECT position, length FROM (SELECT position, octet_length(data) AS length, CASE "  # noqa: S608
    f"WHEN position > ?2 THEN max(CAST(pushed_at AS INTEGER), coalesce({_RETRIED_AT}, CAST(pushed_at AS INTEGER))) "
    f"WHEN {_RETRIED_AT} BETWEEN ?3 AND ?5 THEN {_RETRIED_AT} ELSE ?3 END AS since "
    "FROM message WHERE position NOT IN (SELECT position FROM flight) ORDER BY position LIMIT ?1) WHERE since < ?4 ORDER BY position"
)
READ_MESSAGE: Final = f"SELECT position, {_READ_IDENTITY}, {_READ_DATA} FROM message WHERE position = ?"  # noqa: S608
DELETE_EXPIRED: Final = "DELETE FROM message WHERE position = ?"
COUNT_EXPIRED: Final = "UPDATE book SET expired = expired + ?1, waiting = waiting - ?1 WHERE id = 1"
READ_CLOCKS: Final = (
    "SELECT clock_boot, clock_wall, clock_steady, counted_position, counted_from FROM reader WHERE id = 1"
)
SAVE_CLOCKS: Final = "UPDATE reader SET clock_boot = ?, clock_wall = ?, clock_steady = ?, counted_position = ?, counted_from = ? WHERE id = 1"

# Carrying what can be read of a damaged file
SALVAGE_BEGIN: Final = "INSERT OR IGNORE INTO salvage (file, done, tally) VALUES (?, 0, '{}')"
READ_SALVAGE: Final = "SELECT done, tally FROM salvage WHERE file = ?"
SALVAGE_PROGRESS: Final = "UPDATE salvage SET done = ?, tally = ? WHERE file = ?"
LAST_POSITION: Final = "SELECT last_position FROM book WHERE id = 1"
REQID_AT: Final = "SELECT reqid FROM message WHERE position = ?1 UNION ALL SELECT reqid FROM dead_letter WHERE position = ?1"
CARRY_MESSAGE: Final = f"INSERT INTO message (position, {_IDENTITY}, retried_at, data) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608
CARRY_IN_PLACE: Final = (
    f"INSERT OR IGNORE INTO message (position, {_IDENTITY}, retried_at, data) SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13 "  # noqa: S608
    "WHERE ?1 <= (SELECT last_position FROM book WHERE id = 1) AND NOT EXISTS (SELECT 1 FROM dead_letter WHERE position = ?1)"
)
CARRY_INLET: Final = "INSERT OR IGNORE INTO queue (id, ts, category, data_type, data_version, reqid, data) VALUES (?, ?, ?, ?, ?, ?, ?)"
CARRY_RULE: Final = (
    "INSERT OR IGNORE INTO rule (rule_id, category, system_serial, sender, data_type, data_version, system_version, added_at, "
    "last_seen_at, hits) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
CARRY_SERVER: Final = (
    "INSERT OR IGNORE INTO server (origin, accept_encoding, batch_offer, batch_refused_at, body_limit, body_limit_at, failures, "
    "suspect_since, retry_at, learned_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
COUNT_CARRIED: Final = "UPDATE book SET waiting = waiting + ?1, dead = dead + ?2, dead_bytes = dead_bytes + ?3, found = found + ?1 + ?2 WHERE id = 1"
ENTER_OLD_BOOK: Final = (
    "UPDATE book SET pushed = pushed + :pushed, found = found + :found, damaged = damaged + :damaged, "
    "inlet_in = inlet_in + :removed_by_1x, inlet_out = inlet_out + :removed_by_1x, accepted = accepted + :accepted, "
    "dropped = dropped + :dropped, blacklisted = blacklisted + :blacklisted, dead_discarded = dead_discarded + :dead_discarded, "
    "trimmed = trimmed + :trimmed, expired = expired + :expired, purged = purged + :purged, returned = returned + :returned, "
    "maybe_twice = maybe_twice + :maybe_twice WHERE id = 1"
)

# The way back to 1.x: reading ours at one instant, and making a file of 1.x
EVERY_MESSAGE: Final = f"SELECT position, {_READ_IDENTITY}, {_READ_DATA} FROM message WHERE position BETWEEN ? AND ? ORDER BY position"  # noqa: S608
EVERY_INLET_ROW: Final = (
    "SELECT id, 1000 * CAST(strftime('%s', ts) AS INTEGER), CAST(category AS BLOB), CAST(data_type AS BLOB), "
    "CASE typeof(data_version) WHEN 'integer' THEN data_version ELSE CAST(data_version AS BLOB) END, "
    "CAST(reqid AS BLOB), CAST(data AS BLOB) FROM queue WHERE id BETWEEN ? AND ? ORDER BY id"
)
INLET_SEQUENCE: Final = "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'queue'"
SCHEMA_OF_1X: Final = """CREATE TABLE IF NOT EXISTS queue
        (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            ts TIMESTAMP DEFAULT CURRENT_TIMESTAMP,
            category TEXT NOT NULL,
            data_type TEXT NOT NULL,
            data_version INTEGER NOT NULL,
            reqid TEXT,
            data BLOB NOT NULL
        )"""
PUSH_INTO_1X: Final = (
    "INSERT INTO queue (ts, category, data_type, data_version, reqid, data) VALUES (datetime(? / 1000, 'unixepoch'), ?, ?, ?, ?, ?) "
    "RETURNING CAST(data_version AS TEXT)"
)
