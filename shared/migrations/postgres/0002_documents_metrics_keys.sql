-- Documents, metrics and keyed writes: docs/decisions/0005-store-schema.md, 0006-keyed-writes.md.

-- Keys of writes that came with an Idempotency-Key. Their ids are hashes, so only who asks pays
-- for such an index.
create table keyed_writes (
    id uuid primary key,
    fingerprint bytea not null,
    applied_at timestamptz not null
);
-- For pruning by age, which leaves the keys of documents (kind 2 in a keyed id: nibble a) to the
-- retention of their documents. A BRIN would forget the order as soon as space is used again.
create index keyed_writes_applied_at on keyed_writes (applied_at)
    where get_byte(uuid_send(id), 12) >> 4 <> 10;

-- A removed definition stays as a row, so that its version never comes again.
create table collections (
    name text collate "C" primary key,
    version int8 not null,
    is_defined bool not null,
    schema text,
    indexed text[] not null,
    retention_days int4,
    -- Documents before this place are not indexed yet by the definition; null: all are.
    index_before uuid
);

-- `place` begins with time: reading the primary key backwards is the newest first.
create table documents (
    collection text collate "C" not null,
    place uuid not null,
    -- Of keyed ones; the others are found by their place.
    id uuid,
    -- As the client wrote it; null: deleted.
    data text,
    accepted_at timestamptz not null,
    primary key (collection, place)
);
create unique index documents_id on documents (collection, id) where id is not null;
-- For lists and retention: what was deleted stays as a row, and nobody should walk over it.
create index documents_live on documents (collection, place) where data is not null;

-- One row per indexed member of a document.
create table document_fields (
    collection text collate "C" not null,
    field text collate "C" not null,
    value text collate "C" not null,
    place uuid not null,
    primary key (collection, field, value, place)
);

create table metric_types (
    id int4 generated always as identity primary key,
    name text collate "C" not null unique
);

-- Raw points, by the day on which they were accepted; partitions are made ahead, or by the writer
-- that needs one, and dropped as a whole.
create table points (
    accepted_at timestamptz not null,
    type int4 not null,
    at timestamptz not null,
    value float8 not null
) partition by range (accepted_at);

-- One row per resolution (0 minute, 1 hour, 2 day), type and period (counted since 1970).
-- Minutes have a partition per day, which is dropped as a whole.
create table rollups (
    resolution int2 not null,
    type int4 not null,
    period int4 not null,
    data bytea not null,
    primary key (resolution, type, period)
) partition by range (resolution, period);
create table rollups_hour partition of rollups
    for values from (1, minvalue) to (1, maxvalue) with (fillfactor = 50);
create table rollups_day partition of rollups
    for values from (2, minvalue) to (2, maxvalue) with (fillfactor = 50);
-- Kept in the row as long as it fits: a detour for each merge would cost more.
alter table rollups alter column data set storage main;
alter table rollups_hour alter column data set storage main;
alter table rollups_day alter column data set storage main;
