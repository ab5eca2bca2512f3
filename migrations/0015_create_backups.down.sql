-- Loses nothing: the store has it all.
drop table backups;
