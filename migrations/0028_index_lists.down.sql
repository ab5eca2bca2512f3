-- Loses nothing.
drop index idx_schedule_occurrences_started;

drop index idx_audit_logs_entity_type;
drop index idx_audit_logs_action;
drop index idx_audit_logs_user_id;
create index idx_audit_logs_user_id on audit_logs (user_id);

create index idx_report_executions_executed_by on report_executions (executed_by);
drop index idx_report_executions_report_newest;
create index idx_report_executions_report_definition_id
    on report_executions (report_definition_id);
drop index idx_report_executions_status_newest;
