-- Workers take turns between users: whoever has the fewest executions running goes first. This
-- index finds the users who wait, and the next few executions of each, without looking at the
-- other thousands that one of them may have submitted. `0` stands for the operator, who has no
-- account.
create index idx_report_executions_waiting on report_executions
    ((coalesce(executed_by, 0)), priority desc, run_at, id)
    where status = 'pending';

-- How many of a user's executions are running.
create index idx_report_executions_running on report_executions ((coalesce(executed_by, 0)))
    where status in ('processing', 'cancelling');
