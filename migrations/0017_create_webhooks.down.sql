-- LOSES every webhook with its secret, and what was delivered to it.
drop trigger lifecycle_runs_publish_new on lifecycle_runs;
drop trigger lifecycle_runs_publish_end on lifecycle_runs;
drop trigger report_executions_publish_shared on report_executions;
drop trigger report_executions_publish_end on report_executions;
drop function publish_run();
drop function publish_execution();
drop function publish_event(text, jsonb);
drop table outbox_deliveries;
drop table outbox_events;
drop table webhooks;
