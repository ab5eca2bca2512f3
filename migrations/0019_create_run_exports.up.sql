-- Files that archive runs write to the store before rows leave. A file is noted in the transaction
-- in which its rows leave, so a row that left is always in a file that stands here.
create table lifecycle_run_exports (
    run_id bigint not null,
    position integer not null,
    number integer not null,
    object_path varchar(1024) not null,
    row_count bigint not null,
    size_bytes bigint not null,
    sha256 char(64) not null,
    created_at timestamp with time zone not null default current_timestamp,
    expires_at timestamp with time zone,
    removed_at timestamp with time zone,
    primary key (run_id, position, number),
    foreign key (run_id, position) references lifecycle_run_tables (run_id, position)
        on delete cascade,
    constraint lifecycle_run_exports_counts_check check (
        number > 0 and row_count > 0 and size_bytes > 0),
    constraint lifecycle_run_exports_sha256_check check (sha256 ~ '^[0-9a-f]{64}$')
);
create index idx_lifecycle_run_exports_due on lifecycle_run_exports (expires_at)
    where removed_at is null and expires_at is not null;
