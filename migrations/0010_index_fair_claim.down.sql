-- Loses nothing: claiming is slower where many executions wait.
drop index idx_report_executions_running;
drop index idx_report_executions_waiting;
