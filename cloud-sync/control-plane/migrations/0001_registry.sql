-- Roots of trust, what was published, what was deployed, and what gateways say of themselves.
-- Times are Unix milliseconds; envelopes are JSON as it was received.

CREATE TABLE roots (
    version INTEGER PRIMARY KEY,
    envelope TEXT NOT NULL,
    received_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE releases (
    digest TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    version TEXT NOT NULL,
    envelope TEXT NOT NULL,
    received_ms INTEGER NOT NULL,
    UNIQUE (kind, name, version)
) STRICT;

CREATE TABLE release_blobs (
    release TEXT NOT NULL REFERENCES releases (digest),
    blob TEXT NOT NULL,
    PRIMARY KEY (release, blob)
) STRICT, WITHOUT ROWID;
CREATE INDEX release_blobs_by_blob ON release_blobs (blob);

CREATE TABLE aliases (
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    alias TEXT NOT NULL,
    version TEXT NOT NULL,
    changed_ms INTEGER NOT NULL,
    PRIMARY KEY (kind, name, alias),
    FOREIGN KEY (kind, name, version) REFERENCES releases (kind, name, version)
) STRICT, WITHOUT ROWID;

CREATE TABLE tags (
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    version TEXT NOT NULL,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (kind, name, version, key),
    FOREIGN KEY (kind, name, version) REFERENCES releases (kind, name, version)
) STRICT, WITHOUT ROWID;

CREATE TABLE deployments (
    target_kind TEXT NOT NULL,
    target TEXT NOT NULL,
    number INTEGER NOT NULL,
    digest TEXT NOT NULL UNIQUE,
    floor INTEGER NOT NULL,
    envelope TEXT NOT NULL,
    received_ms INTEGER NOT NULL,
    PRIMARY KEY (target_kind, target, number)
) STRICT;

CREATE TABLE deployment_releases (
    deployment TEXT NOT NULL REFERENCES deployments (digest),
    release TEXT NOT NULL REFERENCES releases (digest),
    PRIMARY KEY (deployment, release)
) STRICT, WITHOUT ROWID;
CREATE INDEX deployment_releases_by_release ON deployment_releases (release);

-- Which deployment of a target its gateways should run. `floor` is the highest of those that were ever desired.
CREATE TABLE targets (
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    number INTEGER,
    floor INTEGER NOT NULL,
    changed_ms INTEGER NOT NULL,
    PRIMARY KEY (kind, name),
    FOREIGN KEY (kind, name, number) REFERENCES deployments (target_kind, target, number)
) STRICT, WITHOUT ROWID;

CREATE TABLE gateways (
    name TEXT PRIMARY KEY,
    created_ms INTEGER NOT NULL,
    revoked_ms INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE groups (
    name TEXT PRIMARY KEY,
    changed_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE group_gateways (
    group_name TEXT NOT NULL REFERENCES groups (name) ON DELETE CASCADE,
    gateway TEXT NOT NULL REFERENCES gateways (name),
    PRIMARY KEY (group_name, gateway)
) STRICT, WITHOUT ROWID;
CREATE INDEX group_gateways_by_gateway ON group_gateways (gateway);

-- The newest desired document of each gateway. `content` is the digest of what it says beside its sequence and times.
CREATE TABLE desired (
    gateway TEXT PRIMARY KEY REFERENCES gateways (name),
    sequence INTEGER NOT NULL,
    content TEXT NOT NULL,
    key TEXT NOT NULL,
    envelope TEXT NOT NULL,
    issued_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE reports (
    gateway TEXT PRIMARY KEY REFERENCES gateways (name),
    report TEXT NOT NULL,
    version INTEGER NOT NULL,
    received_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE phases (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    gateway TEXT NOT NULL REFERENCES gateways (name),
    progress TEXT NOT NULL,
    received_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX phases_by_gateway ON phases (gateway, id);

CREATE TABLE shadows (
    gateway TEXT PRIMARY KEY REFERENCES gateways (name),
    desired TEXT NOT NULL,
    version INTEGER NOT NULL,
    changed_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- What operators ask of a gateway beside its deployment.
CREATE TABLE requests (
    gateway TEXT NOT NULL REFERENCES gateways (name),
    kind TEXT NOT NULL,
    request TEXT NOT NULL,
    until_ms INTEGER NOT NULL,
    PRIMARY KEY (gateway, kind)
) STRICT, WITHOUT ROWID;

CREATE TABLE log_lines (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    gateway TEXT NOT NULL REFERENCES gateways (name),
    line TEXT NOT NULL,
    received_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX log_lines_by_gateway ON log_lines (gateway, id);
