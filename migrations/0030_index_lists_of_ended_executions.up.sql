-- Lists of a user's or a report's executions in one state: what is rare among many was looked for
-- among all of them, newest first. What has not ended is little and found by its state (0029). One
-- expression each, which no statement but the list's has.
--
-- Down: loses nothing.
create index idx_report_executions_user_ended
    on report_executions ((executed_by::text || ' ' || status), id desc)
    where status in ('completed', 'failed', 'cancelled', 'expired');
create index idx_report_executions_report_ended
    on report_executions ((report_definition_id::text || ' ' || status), id desc)
    where status in ('completed', 'failed', 'cancelled', 'expired');
