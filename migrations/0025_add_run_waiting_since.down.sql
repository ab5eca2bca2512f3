-- LOSES since when runs wait.
alter table lifecycle_runs drop column waiting_since;
