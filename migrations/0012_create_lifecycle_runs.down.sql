-- `restrict` on purpose: archived rows are the only copy.
drop schema archive restrict;
drop schema everything restrict;
drop table lifecycle_run_tables;
drop table lifecycle_runs;
