-- The same tables as in Postgres, where they are explained.
create table ledger_floor (
    one integer primary key check (one = 1),
    id blob not null
) strict;
insert into ledger_floor (one, id) values (1, zeroblob(16));

create table ledger_holders (
    consumer integer primary key,
    oldest_ms integer not null,
    told_at_ms integer not null
) strict;

create index documents_deleted on documents (accepted_at_ms) where data is null;
create index dead_letters_discarded on dead_letters (discarded_at_ms) where discarded_at_ms is not null;
