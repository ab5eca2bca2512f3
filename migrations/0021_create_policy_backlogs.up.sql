-- What each lifecycle policy had before it when somebody last looked. A look reads whole tables, so
-- metrics read this instead.
--
-- Down: loses nothing that the next look does not find again.

create table policy_backlogs (
    policy varchar(100) primary key,
    taken_at timestamp with time zone not null,
    eligible bigint not null,
    held bigint not null,
    indeterminate bigint not null,
    blocked bigint not null,
    oldest_at timestamp with time zone,
    is_over_ceiling boolean not null,
    constraint policy_backlogs_counts_check check (
        eligible >= 0 and held >= 0 and indeterminate >= 0 and blocked >= 0)
);
