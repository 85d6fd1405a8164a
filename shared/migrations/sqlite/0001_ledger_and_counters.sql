-- The same tables as in Postgres; ids as 16 bytes, times in milliseconds since 1970.
-- Strict: an integer that overflows must be an error, never a REAL.
create table applied_message (
    id blob primary key,
    digest blob not null,
    applied_at_ms integer not null
) strict, without rowid;

create table counters (
    name text primary key,
    value integer not null,
    version integer not null,
    updated_at_ms integer not null
) strict, without rowid;

create table dead_letters (
    id blob primary key,
    kind text not null,
    reason text not null,
    detail text not null,
    item text not null,
    accepted_at_ms integer not null,
    set_aside_at_ms integer not null,
    discarded_at_ms integer
) strict;
