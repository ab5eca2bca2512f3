-- Loses the caps of definitions on executions that are stored, whose second format an execution is,
-- and whose result it shares. What waits for another's result would be run by nobody who knows of
-- it, so it runs on its own.
drop function claim_execution;
drop function claimable_executions;
drop index idx_report_executions_parked;
drop index idx_report_executions_served;
drop index idx_report_executions_running;
create index idx_report_executions_running on report_executions ((coalesce(executed_by, 0)))
    where status in ('processing', 'cancelling');
alter table report_executions
    drop column max_concurrent,
    drop column format_of,
    drop column shared_from,
    drop column reuse_key;
