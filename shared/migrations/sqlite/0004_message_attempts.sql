-- The same table as in Postgres, where it is explained.
create table message_attempts (
    message blob primary key,
    attempts integer not null,
    begun_at_ms integer not null
) strict, without rowid;
