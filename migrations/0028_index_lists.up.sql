-- Lists, newest first, by what they are filtered by: with years of rows, a page for a state, a
-- report, an action or a kind of thing that is rare, or only old, read all that came since.
--
-- (executed_by, id desc) answers what the index on executed_by alone did.
create index idx_report_executions_status_newest on report_executions (status, id desc);
drop index idx_report_executions_report_definition_id;
create index idx_report_executions_report_newest
    on report_executions (report_definition_id, id desc);
drop index idx_report_executions_executed_by;

drop index idx_audit_logs_user_id;
create index idx_audit_logs_user_id on audit_logs (user_id, id desc);
create index idx_audit_logs_action on audit_logs (action, id desc);
create index idx_audit_logs_entity_type on audit_logs (entity_type, id desc);

-- What a schedule started last, however often it was left out since.
create index idx_schedule_occurrences_started on schedule_occurrences (schedule, due_at desc)
    where execution_id is not null;
