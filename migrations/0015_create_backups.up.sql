-- What the store holds of backups, for lists, metrics and schedules. A cache: the manifests in the
-- store are the truth, and `registrar backup list --refresh` fills it again.
create table backups (
    id varchar(25) primary key,
    taken_at timestamp with time zone not null,
    finished_at timestamp with time zone not null,
    purpose varchar(20) not null check (purpose in ('manual', 'scheduled', 'pre-migration')),
    database_name varchar(63) not null,
    server_version varchar(50) not null,
    schema_version bigint,
    size_bytes bigint not null check (size_bytes >= 0),
    dump_bytes bigint not null check (dump_bytes >= 0),
    row_count bigint not null check (row_count >= 0),
    duration_ms bigint not null check (duration_ms >= 0),
    encrypted boolean not null,
    pins text[] not null default '{}',
    verified_at timestamp with time zone,
    verified_good boolean,
    verify_duration_ms bigint,
    verify_problem text,
    check ((verified_at is null) = (verified_good is null))
);
create index idx_backups_taken_at on backups (taken_at);
