-- Attempts at messages that were begun and not ended: a message that brings its consumer down leaves
-- its row behind (docs/decisions/0015-a-message-that-fails-alone.md). Empty but for moments.
create table message_attempts (
    message uuid primary key,
    attempts int4 not null,
    begun_at timestamptz not null
);
