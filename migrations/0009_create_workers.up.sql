-- Processes that hold leases. While a process lives it holds the session advisory lock
-- (lock_key): the server frees that within milliseconds of a `kill -9`, so its work is taken over at
-- once, and the lease covers the host that vanished without a word.
create table workers (
    id varchar(200) primary key,
    host varchar(255) not null,
    pid integer not null,
    lock_key bigint not null unique,
    started_at timestamp with time zone not null default current_timestamp,
    last_seen_at timestamp with time zone not null default current_timestamp
);

-- Each due time of a schedule once: the row is inserted in the transaction that enqueues the work,
-- so of N schedulers one wins.
create table schedule_occurrences (
    schedule varchar(100) not null,
    due_at timestamp with time zone not null,
    created_at timestamp with time zone not null default current_timestamp,
    primary key (schedule, due_at)
);
create index idx_schedule_occurrences_created_at on schedule_occurrences (created_at);
