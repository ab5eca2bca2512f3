-- LOSES every schedule, and what became of each occurrence.
alter table schedule_occurrences
    drop column status, drop column reason, drop column execution_id, drop column ticket_at;
drop table schedules;
