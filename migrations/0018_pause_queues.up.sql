-- Queues from which nothing is taken until they are resumed, and worker processes that take nothing
-- new. Rows, so that every process sees them and a restart forgets nothing.
--
-- Down: queues that were paused go on, and so do workers that were drained.
create table queue_pauses (
    queue varchar(50) primary key,
    paused_at timestamp with time zone not null default current_timestamp
);

alter table workers add column draining_at timestamp with time zone;
