-- Which policy of jobs/ asked for a backup, and which program made it: a policy keeps and proves its
-- own. Numbers of pgBackRest's backups are up to 33 characters long.
alter table backups
    alter column id type varchar(40),
    add column engine varchar(20) not null default 'pg_dump'
        check (engine in ('pg_dump', 'pgbackrest')),
    add column policy varchar(100);
