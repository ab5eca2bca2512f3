-- Loses nothing that lasts: processes register again, and leases run out by themselves.
drop table schedule_occurrences;
drop table workers;
