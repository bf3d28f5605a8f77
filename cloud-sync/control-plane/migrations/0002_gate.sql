-- Who may call, and who did what.

-- Each line's hash is over the hash before it and the line, so that nothing can be taken out or changed unnoticed.
CREATE TABLE audit (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    entry TEXT NOT NULL,
    hash TEXT NOT NULL
) STRICT;
