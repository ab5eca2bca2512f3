-- Loses the caps of definitions on executions that are stored.
drop function claim_execution;
drop function claimable_executions;
drop index idx_report_executions_parked;
drop index idx_report_executions_running;
create index idx_report_executions_running on report_executions ((coalesce(executed_by, 0)))
    where status in ('processing', 'cancelling');
alter table report_executions drop column max_concurrent;
