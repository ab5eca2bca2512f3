-- Only lists of executions read the index by state. A claim joins what it has chosen by
-- `status = 'pending'`, and with a plain index on the state it read, from the beginning, the dead
-- entries of all that had waited since the last vacuum (see migration 0026).
--
-- Down: loses nothing.
drop index idx_report_executions_status_newest;
create index idx_report_executions_status_newest
    on report_executions ((status || ''), id desc);
