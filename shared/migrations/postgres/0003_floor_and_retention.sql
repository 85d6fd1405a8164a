-- What the ledger has forgotten, and who keeps it from forgetting: docs/decisions/0010-floor-and-retention.md.

-- The floor: the last id whose ledger row was dropped. An id up to here that has no row may have
-- been applied. One row, which only rises; every writer reads it and locks nothing.
create table ledger_floor (
    one bool primary key default true check (one),
    id uuid not null
);
insert into ledger_floor (id) values ('00000000-0000-0000-0000-000000000000');

-- The oldest accept time that each consumer holds or may still be given.
create table ledger_holders (
    consumer int8 primary key,
    oldest timestamptz not null,
    told_at timestamptz not null
);

-- For pruning what was deleted, by the accept time of the delete.
create index documents_deleted on documents (accepted_at) where data is null;
create index dead_letters_discarded on dead_letters (discarded_at) where discarded_at is not null;
