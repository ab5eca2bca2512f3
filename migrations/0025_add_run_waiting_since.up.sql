-- Since when a run waits for the reason that stands beside it; it says nothing where there is none.
alter table lifecycle_runs add column waiting_since timestamp with time zone;
