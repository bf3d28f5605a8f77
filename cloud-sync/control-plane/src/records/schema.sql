-- A stream of a gateway, once for each journal that it came from.
CREATE TABLE IF NOT EXISTS streams (
    id INTEGER PRIMARY KEY,
    gateway TEXT NOT NULL,
    stream TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    UNIQUE (gateway, stream, epoch)
) STRICT;

-- `id` grows with each arrival. `kind`: 1 when `data` is JSON, and 2 when the gateway's clock was not set, so that `time_ms` is when it came.
CREATE TABLE IF NOT EXISTS records (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    stream INTEGER NOT NULL REFERENCES streams (id),
    sequence INTEGER NOT NULL,
    time_ms INTEGER NOT NULL,
    received_ms INTEGER NOT NULL,
    kind INTEGER NOT NULL,
    data BLOB NOT NULL,
    UNIQUE (stream, sequence)
) STRICT;

-- Holds all that a query asks, so that only rows that match are read.
CREATE INDEX IF NOT EXISTS records_by_stream ON records (stream, id, time_ms);
