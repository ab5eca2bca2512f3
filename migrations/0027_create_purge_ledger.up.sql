-- Entries of the erasure ledger that runs wrote before they deleted people. An entry is noted in the
-- transaction in which its people go; one that is not noted was written by a worker that was killed.
-- The run need not be of this database: after a restore, entries of a lost time are noted as replayed.
create table purge_ledger (
    object_path varchar(1024) primary key,
    sha256 char(64) not null,
    run_id bigint not null,
    people bigint not null,
    created_at timestamp with time zone not null default current_timestamp,
    is_replayed boolean not null default false,
    constraint purge_ledger_people_check check (people > 0),
    constraint purge_ledger_sha256_check check (sha256 ~ '^[0-9a-f]{64}$')
);
create index idx_purge_ledger_run_id on purge_ledger (run_id);
