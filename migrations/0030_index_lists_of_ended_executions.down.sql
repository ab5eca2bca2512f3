-- Loses nothing.
drop index idx_report_executions_report_ended;
drop index idx_report_executions_user_ended;
