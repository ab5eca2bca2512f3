-- Which run asked for an erasure (a purge that found an account that others still reference), and
-- which carried it out. Numbers without a foreign key, as everywhere in these records.
--
-- Down: loses which run it was; certificates that were sealed since name it still.

alter table erasures add column asked_by_run bigint, add column carried_out_by_run bigint;

-- A purge looks for every account whether its erasure was asked for.
create index idx_erasures_subject on erasures (subject_table, subject_id);
create index idx_erasures_asked_by_run on erasures (asked_by_run) where asked_by_run is not null;
create index idx_erasures_carried_out_by_run on erasures (carried_out_by_run)
    where carried_out_by_run is not null;
