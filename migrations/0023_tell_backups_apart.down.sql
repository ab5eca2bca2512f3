-- Loses nothing: the table is a cache. Backups of pgBackRest leave the list until it is filled again.
-- changes rows of: backups
delete from backups where engine <> 'pg_dump';
alter table backups
    drop column policy,
    drop column engine,
    alter column id type varchar(25);
