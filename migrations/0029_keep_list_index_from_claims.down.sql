-- Loses nothing.
drop index idx_report_executions_status_newest;
create index idx_report_executions_status_newest on report_executions (status, id desc);
