-- What the seed's report tables lack to be run by many workers: a stable public name and a version
-- for definitions, and for executions the state machine's columns (attempt, lease, limits, result).
--
-- `attempt` is the fencing token: it only grows, and a worker publishes only with the number it
-- claimed. `failed_attempts` is what counts against `max_attempts`, so that a deploy, which gives
-- the attempt back, costs an execution nothing.

alter table report_definitions
    add column slug varchar(100),
    add column version integer not null default 1,
    add column spec jsonb not null default '{}',
    add column content_sha256 char(64),
    add column source varchar(20) not null default 'api',
    add column is_active boolean not null default true;

update report_definitions set slug = 'definition-' || id where slug is null;

alter table report_definitions
    alter column slug set not null,
    add constraint report_definitions_slug_key unique (slug),
    add constraint report_definitions_source_check check (source in ('api', 'template'));

-- An execution runs the version it was submitted with, even if the definition has changed since,
-- and a result can be explained years later.
create table report_definition_versions (
    report_definition_id integer not null references report_definitions (id) on delete cascade,
    version integer not null,
    query text not null,
    parameters jsonb,
    spec jsonb not null,
    content_sha256 char(64) not null,
    created_at timestamp with time zone not null default current_timestamp,
    primary key (report_definition_id, version)
);

alter table report_executions alter column id type bigint;
alter sequence report_executions_id_seq as bigint;

alter table report_executions
    add column definition_version integer,
    add column format varchar(20) not null default 'csv',
    add column options jsonb not null default '{}',
    add column priority smallint not null default 0,
    add column trace_id varchar(64),
    add column attempt integer not null default 0,
    add column failed_attempts integer not null default 0,
    add column max_attempts integer not null default 3,
    add column run_at timestamp with time zone not null default current_timestamp,
    add column ticket_id varchar(26),
    add column ticket_at timestamp with time zone,
    add column lease_owner varchar(200),
    add column lease_until timestamp with time zone,
    add column backend_pid integer,
    add column backend_start timestamp with time zone,
    add column started_at timestamp with time zone,
    add column cancel_requested_at timestamp with time zone,
    add column progress_rows bigint not null default 0,
    add column progress_bytes bigint not null default 0,
    add column error_code varchar(50),
    add column row_count bigint,
    add column size_bytes bigint,
    add column sha256 char(64),
    add column truncated boolean not null default false,
    add column snapshot_at timestamp with time zone,
    add column expires_at timestamp with time zone,
    add constraint report_executions_version_fkey
        foreign key (report_definition_id, definition_version)
        references report_definition_versions (report_definition_id, version),
    add constraint report_executions_status_check check (status in
        ('pending', 'processing', 'cancelling', 'completed', 'failed', 'cancelled', 'expired')),
    -- A lease belongs to a state in which somebody works, and to no other.
    add constraint report_executions_lease_check check (
        (lease_until is not null) = (status in ('processing', 'cancelling') and attempt > 0)),
    add constraint report_executions_attempts_check check (
        attempt >= 0 and failed_attempts >= 0 and max_attempts >= 1);

-- Each is partial, so that millions of finished executions cost the queue nothing.
create index idx_report_executions_pending on report_executions (run_at) where status = 'pending';
create index idx_report_executions_leased on report_executions (lease_until)
    where status in ('processing', 'cancelling');
create index idx_report_executions_expiring on report_executions (expires_at)
    where status = 'completed';
-- "My executions, newest first" and its cursor.
create index idx_report_executions_user_newest on report_executions (executed_by, id desc);
-- The version's foreign key, and past durations of a definition for the estimate.
create index idx_report_executions_version
    on report_executions (report_definition_id, definition_version);
