-- The ledger, one row per applied message: docs/decisions/0002-ledger.md, 0005-store-schema.md.
-- Its partitions, one per day of id time, are made by the writer that first needs them.
create table applied_message (
    id uuid primary key,
    digest bytea not null,
    applied_at timestamptz not null
) partition by range (id);

-- Bytewise order, so that pages do not depend on the locale of the server. Half of each page is
-- kept free: an update then finds room beside its old row and leaves the index alone.
create table counters (
    name text collate "C" primary key,
    value int8 not null,
    version int8 not null,
    updated_at timestamptz not null
) with (fillfactor = 50);

-- Items that could not be applied. Plain text, not json: what stands here may be what no parser takes.
create table dead_letters (
    id uuid primary key,
    kind text not null,
    reason text not null,
    detail text not null,
    item text not null,
    accepted_at timestamptz not null,
    set_aside_at timestamptz not null,
    discarded_at timestamptz
);
