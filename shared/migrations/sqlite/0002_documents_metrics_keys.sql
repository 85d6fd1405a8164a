-- The same tables as in Postgres, where they are explained. Days of points are tables of their own
-- (`points_20261120`), made by the writer that needs one.
create table keyed_writes (
    id blob primary key,
    fingerprint blob not null,
    applied_at_ms integer not null
) strict, without rowid;
create index keyed_writes_applied_at on keyed_writes (applied_at_ms) where substr(hex(id), 25, 1) <> 'A';

create table collections (
    name text primary key,
    version integer not null,
    is_defined integer not null,
    schema text,
    -- A JSON array of names.
    indexed text not null,
    retention_days integer,
    index_before blob
) strict, without rowid;

-- With rowids, as rollups: without, a row beyond 1 000 bytes costs a page of its own.
create table documents (
    collection text not null,
    place blob not null,
    id blob,
    data text,
    accepted_at_ms integer not null,
    primary key (collection, place)
) strict;
create unique index documents_id on documents (collection, id) where id is not null;

create table document_fields (
    collection text not null,
    field text not null,
    value text not null,
    place blob not null,
    primary key (collection, field, value, place)
) strict, without rowid;

create table metric_types (
    id integer primary key,
    name text not null unique
) strict;

create table rollups (
    resolution integer not null,
    type integer not null,
    period integer not null,
    data blob not null,
    primary key (resolution, type, period)
) strict;
-- Pruning goes by age. Rows are changed far more often than made, and a change leaves this alone.
create index rollups_period on rollups (resolution, period);
