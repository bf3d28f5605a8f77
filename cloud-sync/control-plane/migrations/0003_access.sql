-- Who may call: people's tokens, claims by which gateways get in, and certificates by which they are known.

-- `secret` is the SHA-256 of 32 random bytes; the bytes themselves are nowhere.
CREATE TABLE tokens (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    role TEXT NOT NULL,
    secret TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    expires_ms INTEGER,
    used_ms INTEGER,
    revoked_ms INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE claims (
    id TEXT PRIMARY KEY,
    secret TEXT NOT NULL,
    uses_max INTEGER NOT NULL,
    uses INTEGER NOT NULL,
    groups TEXT NOT NULL,
    name_prefix TEXT,
    replaces TEXT,
    created_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    revoked_ms INTEGER
) STRICT, WITHOUT ROWID;

-- What was granted for which nonce, so that a request that comes again is answered the same.
CREATE TABLE grants (
    nonce TEXT PRIMARY KEY,
    claim TEXT NOT NULL REFERENCES claims (id),
    key TEXT NOT NULL,
    gateway TEXT NOT NULL REFERENCES gateways (name),
    granted_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX grants_by_key ON grants (key);

CREATE TABLE certificates (
    fingerprint TEXT PRIMARY KEY,
    gateway TEXT NOT NULL REFERENCES gateways (name),
    ours INTEGER NOT NULL,
    not_after_ms INTEGER NOT NULL,
    added_ms INTEGER NOT NULL,
    revoked_ms INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX certificates_by_gateway ON certificates (gateway);

-- The starts of the agent that were seen under one name, newest last; `returns` counts how often one came back after another.
CREATE TABLE boots (
    gateway TEXT PRIMARY KEY REFERENCES gateways (name),
    seen TEXT NOT NULL,
    returns INTEGER NOT NULL,
    noticed_ms INTEGER
) STRICT, WITHOUT ROWID;
