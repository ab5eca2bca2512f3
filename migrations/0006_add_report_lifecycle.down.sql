-- Loses slugs, versions, attempts, leases and what is known of results (the files themselves stay
-- in the store). Executions in a state that the seed does not know become `failed`.
drop index idx_report_executions_version;
drop index idx_report_executions_user_newest;
drop index idx_report_executions_expiring;
drop index idx_report_executions_leased;
drop index idx_report_executions_pending;

alter table report_executions
    drop constraint report_executions_attempts_check,
    drop constraint report_executions_lease_check,
    drop constraint report_executions_status_check,
    drop constraint report_executions_version_fkey;

update report_executions
   set status = 'failed',
       error_message = coalesce(error_message, 'was ' || status || ' when the schema was taken back')
 where status not in ('pending', 'processing', 'completed', 'failed');

alter table report_executions
    drop column definition_version, drop column format, drop column options,
    drop column priority, drop column trace_id, drop column attempt, drop column failed_attempts,
    drop column max_attempts, drop column run_at, drop column ticket_id, drop column ticket_at,
    drop column lease_owner, drop column lease_until, drop column backend_pid,
    drop column backend_start, drop column started_at, drop column cancel_requested_at,
    drop column progress_rows, drop column progress_bytes, drop column error_code,
    drop column row_count, drop column size_bytes, drop column sha256, drop column truncated,
    drop column snapshot_at, drop column expires_at;

alter table report_executions alter column id type integer;
alter sequence report_executions_id_seq as integer;

drop table report_definition_versions;

alter table report_definitions
    drop constraint report_definitions_source_check,
    drop constraint report_definitions_slug_key,
    drop column slug, drop column version, drop column spec, drop column content_sha256,
    drop column source, drop column is_active;
