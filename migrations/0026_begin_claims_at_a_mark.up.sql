-- Claims do not become dearer while something keeps dead rows from being removed: a backup's
-- snapshot does, for as long as pg_dump runs. Each execution leaves dead entries at the beginning
-- of the indexes that a claim reads, and nothing may remove them.
--
-- So claims begin where the last look found something. A look is a row of `claim_marks`, never
-- changed, and the sequence `claim_mark` says which one counts: a sequence leaves no dead rows, and
-- a row that is found by its number costs the same whatever was there before. It says
--   * which lanes (a user's executions of one priority) have something that waits, and from when;
--   * which executions run.
-- What came later is read by its time. Claims take turns (see migration 0011) and look themselves:
-- after 100 ms from where the look before began, after a second 3 s further back, and after 10 s at
-- everything. So an execution whose transaction was open for longer than 100 ms before its commit
-- waits up to a second more while others are there, or ten, if it took longer than 3 s. Where a
-- claim finds nothing it looks at everything first. Without a look that counts (after a restore, or
-- a crash) the next claim looks at everything.
--
-- Down: loses nothing.
create sequence claim_mark;
create table claim_marks (
    id bigint primary key,
    seen_at timestamp with time zone not null,
    -- When it was last looked further back, and at everything.
    back_at timestamp with time zone not null,
    all_at timestamp with time zone not null,
    lane_users integer[] not null,
    lane_priorities smallint[] not null,
    lane_starts timestamp with time zone[] not null,
    running bigint[] not null
);

comment on table claim_marks is
    'Where claims begin to read: the lanes with something that waits, and what runs.';

-- The words of these predicates are not those of statements that guard a change by its old state:
-- by `id = … and status = 'pending'` such an index looks cheap while it is small, and would be read
-- from its beginning.
--
-- An index on the lease is gone: each renewal of a lease wrote to all indexes.
drop index idx_report_executions_leased;
drop index idx_report_executions_running;
create index idx_report_executions_running on report_executions (started_at)
    where lease_until is not null;
drop index idx_report_executions_waiting;
create index idx_report_executions_waiting on report_executions
    ((coalesce(executed_by, 0)), priority desc, run_at, id)
    where status is not distinct from 'pending' and run_at is not null;
-- What came since a look. No lane is read by it, which would be all users', nor this by lanes.
drop index idx_report_executions_pending;
create index idx_report_executions_arrived on report_executions ((coalesce(run_at, created_at)))
    where status is not distinct from 'pending' and coalesce(run_at, created_at) is not null;

-- The lanes with something that waits, and from when to read each.
create function waiting_lanes()
returns table (user_id integer, priority smallint, starts timestamp with time zone)
language sql stable
as $$
    with mark as materialized (
        select m.* from claim_marks m where m.id = (select last_value from claim_mark)
    )
    select found.user_id, found.priority, min(found.starts)
      from (select lanes.user_id, lanes.priority, lanes.starts
              from mark
             cross join unnest(mark.lane_users, mark.lane_priorities, mark.lane_starts)
                        as lanes (user_id, priority, starts)
             union all
            select coalesce(e.executed_by, 0), e.priority, e.run_at
              from report_executions e
             where e.status is not distinct from 'pending'
               and coalesce(e.run_at, e.created_at) <= now()
               -- Without a look: everything.
               and coalesce(e.run_at, e.created_at)
                   >= coalesce((select seen_at - interval '100 milliseconds' from mark),
                               '-infinity')) found
     group by found.user_id, found.priority
$$;

-- What runs.
create function running_executions()
returns table (id bigint, user_id integer, report_definition_id integer)
language sql stable
as $$
    with mark as materialized (
        select m.* from claim_marks m where m.id = (select last_value from claim_mark)
    )
    select still.id, still.user_id, still.report_definition_id
      from mark
     cross join unnest(mark.running) as known (id)
     cross join lateral (
           select e.id, coalesce(e.executed_by, 0) as user_id, e.report_definition_id
             from report_executions e
            where e.id = known.id and e.status in ('processing', 'cancelling')
              and e.started_at < mark.seen_at
           -- Not to be merged: each is found by its number, also where a plan is from when the
           -- table was small.
           offset 0) still
     union all
    select e.id, coalesce(e.executed_by, 0), e.report_definition_id
      from report_executions e
     where e.lease_until is not null
       and e.started_at >= coalesce((select seen_at from mark), '-infinity')
$$;

-- Looks, and lets claims begin at what it finds. At everything, or from where the look before
-- began and `back` before it. Only inside a claim's turn.
create function look_for_claims(everything boolean, back interval)
returns claim_marks
language plpgsql
as $$
declare
    last claim_marks;
    mark claim_marks;
begin
    select m.* into last from claim_marks m where m.id = (select last_value from claim_mark);
    mark.seen_at := clock_timestamp();
    mark.back_at := case when back >= interval '1 second' then mark.seen_at else last.back_at end;
    mark.all_at := last.all_at;
    if everything or last.id is null then
        mark.back_at := mark.seen_at;
        mark.all_at := mark.seen_at;
        with recursive lanes (user_id, priority, starts) as (
            (select coalesce(e.executed_by, 0), e.priority, e.run_at
               from report_executions e
              where e.status is not distinct from 'pending' and e.run_at is not null
              order by coalesce(e.executed_by, 0), e.priority desc, e.run_at, e.id
              limit 1)
            union all
            select further.user_id, further.priority, further.starts
              from lanes
             cross join lateral (
                   select *
                     from (select coalesce(e.executed_by, 0), e.priority, e.run_at
                             from report_executions e
                            where e.status is not distinct from 'pending' and e.run_at is not null
                              and coalesce(e.executed_by, 0) = lanes.user_id
                              and e.priority < lanes.priority
                            order by e.priority desc, e.run_at, e.id
                            limit 1) same_user
                    union all
                   select *
                     from (select coalesce(e.executed_by, 0), e.priority, e.run_at
                             from report_executions e
                            where e.status is not distinct from 'pending' and e.run_at is not null
                              and coalesce(e.executed_by, 0) > lanes.user_id
                            order by coalesce(e.executed_by, 0), e.priority desc, e.run_at, e.id
                            limit 1) next_user
                    limit 1) further (user_id, priority, starts)
        )
        select coalesce(array_agg(lanes.user_id), '{}'), coalesce(array_agg(lanes.priority), '{}'),
               coalesce(array_agg(lanes.starts), '{}')
          into mark.lane_users, mark.lane_priorities, mark.lane_starts
          from lanes;
        select coalesce(array_agg(e.id), '{}')
          into mark.running
          from report_executions e
         where e.lease_until is not null;
        delete from claim_marks;
    else
        select coalesce(array_agg(live.user_id), '{}'), coalesce(array_agg(live.priority), '{}'),
               coalesce(array_agg(live.starts), '{}')
          into mark.lane_users, mark.lane_priorities, mark.lane_starts
          from (select found.user_id, found.priority, min(found.starts) as starts
                  from (select lanes.user_id, lanes.priority, first.run_at as starts
                          from unnest(last.lane_users, last.lane_priorities, last.lane_starts)
                               as lanes (user_id, priority, starts)
                         cross join lateral (
                               select e.run_at
                                 from report_executions e
                                where coalesce(e.executed_by, 0) = lanes.user_id
                                  and e.priority = lanes.priority
                                  and e.status is not distinct from 'pending'
                                  and e.run_at >= lanes.starts - back
                                order by e.run_at, e.id
                                limit 1) first
                         union all
                        select coalesce(e.executed_by, 0), e.priority, e.run_at
                          from report_executions e
                         where e.status is not distinct from 'pending'
                           and coalesce(e.run_at, e.created_at) >= last.seen_at - back
                           and coalesce(e.run_at, e.created_at) <= mark.seen_at) found
                 group by found.user_id, found.priority) live;
        select coalesce(array_agg(r.id), '{}') into mark.running from running_executions() r;
        delete from claim_marks m where m.id = last.id;
    end if;
    mark.id := nextval('claim_mark');
    insert into claim_marks select mark.*;
    return mark;
end
$$;

-- An execution that waits, or runs, from before the last look, other than by waiting or by a claim:
-- the next claim looks at everything.
create function forget_claim_mark() returns trigger
language plpgsql
as $$
begin
    perform nextval('claim_mark');
    return null;
end
$$;
create trigger report_executions_inserted_early
    after insert on report_executions
    for each row
    when (new.status = 'pending' and new.run_at < now()
          or new.status in ('processing', 'cancelling'))
    execute function forget_claim_mark();
create trigger report_executions_waits_from_earlier
    after update of status, run_at, priority, executed_by on report_executions
    for each row
    when (new.status = 'pending' and new.run_at < now()
          and (old.status <> 'pending' or new.run_at < old.run_at
               or new.priority <> old.priority
               or new.executed_by is distinct from old.executed_by)
          or new.status in ('processing', 'cancelling')
          and (old.status not in ('processing', 'cancelling') and new.started_at < now()))
    execute function forget_claim_mark();

create or replace function claimable_executions(per_user integer, user_cap integer, server_cap integer)
returns table (id bigint, priority smallint, turn bigint, served_at timestamp with time zone,
               run_at timestamp with time zone)
language sql stable
as $$
    with running as materialized (
        select r.user_id, r.report_definition_id, count(*) as executions
          from running_executions() r
         group by r.user_id, r.report_definition_id
    ),
    lanes as materialized (
        select l.user_id, l.priority, l.starts,
               coalesce((select sum(r.executions)
                           from running r
                          where r.user_id = l.user_id), 0)::bigint as running
          from waiting_lanes() l
    ),
    ranked as (
        select next.id, lanes.priority, next.run_at, next.max_concurrent, served.served_at,
               lanes.running + row_number() over users as turn,
               row_number() over (partition by lanes.user_id
                                  order by lanes.priority desc, next.run_at, next.id) as place,
               lanes.running
                   + row_number() over (partition by lanes.user_id
                                        order by lanes.priority desc, next.run_at, next.id)
                   as of_user,
               same.executions
                   + row_number() over (partition by lanes.user_id, next.report_definition_id
                                        order by lanes.priority desc, next.run_at, next.id)
                   as of_definition
          from lanes
         cross join lateral (
               select max(s.started_at) as served_at
                 from report_executions s
                where coalesce(s.executed_by, 0) = lanes.user_id
                  and s.started_at is not null) served
         cross join lateral (
               select e.id, e.run_at, e.report_definition_id, e.max_concurrent
                 from report_executions e
                where coalesce(e.executed_by, 0) = lanes.user_id
                  and e.priority = lanes.priority
                  and e.status is not distinct from 'pending' and e.run_at <= now()
                  and e.shared_from is null
                  and e.run_at >= lanes.starts
                  and (user_cap is null or lanes.running < user_cap)
                  -- Before the limit: what a cap keeps back must not hide what is behind it.
                  and (e.max_concurrent is null
                       or e.max_concurrent > coalesce(
                           (select r.executions
                              from running r
                             where r.user_id = lanes.user_id
                               and r.report_definition_id = e.report_definition_id), 0))
                order by e.run_at, e.id
                limit per_user) next
         cross join lateral (
               select coalesce(sum(r.executions), 0)::bigint as executions
                 from running r
                where r.user_id = lanes.user_id
                  and r.report_definition_id = next.report_definition_id) same
        window users as (partition by lanes.user_id, lanes.priority
                         order by next.run_at, next.id)
    )
    select ranked.id, ranked.priority, ranked.turn, ranked.served_at, ranked.run_at
      from ranked
     where ranked.place <= per_user
       and (user_cap is null or ranked.of_user <= user_cap)
       and (ranked.max_concurrent is null or ranked.of_definition <= ranked.max_concurrent)
       and (server_cap is null or server_cap > (select sum(r.executions) from running r)
            or not exists (select from running))
     order by ranked.priority desc, ranked.turn, ranked.served_at nulls first, ranked.run_at,
              ranked.id
$$;

create or replace function claim_execution(
    owner text, lease_secs double precision, user_cap integer, server_cap integer)
returns setof report_executions
language plpgsql
as $$
declare
    mark claim_marks;
    instant timestamp with time zone;
    is_claimed boolean;
begin
    -- 'Claim' as a number; of this database alone, as advisory locks are.
    perform pg_advisory_xact_lock(71, 19);
    instant := clock_timestamp();
    select m.* into mark from claim_marks m where m.id = (select last_value from claim_mark);
    if mark.id is null or mark.all_at < instant - interval '10 seconds' then
        mark := look_for_claims(true, interval '0');
    elsif mark.back_at < instant - interval '1 second' then
        mark := look_for_claims(false, interval '3 seconds');
    elsif mark.seen_at < instant - interval '100 milliseconds' then
        mark := look_for_claims(false, interval '100 milliseconds');
    end if;
    for try in 1..2 loop
        return query
            with chosen as (
                select e.id
                  from claimable_executions(16, user_cap, server_cap) next
                  join report_executions e on e.id = next.id and e.status = 'pending'
                 order by next.priority desc, next.turn, next.served_at nulls first, next.run_at,
                          next.id
                 limit 1
                   for update of e skip locked
            )
            update report_executions e
               set status = 'processing', attempt = e.attempt + 1,
                   lease_owner = owner, lease_until = now() + make_interval(secs => lease_secs),
                   -- In the order of turns, which now() is not.
                   started_at = clock_timestamp(), progress_rows = 0, progress_bytes = 0,
                   backend_pid = null, backend_start = null,
                   ticket_id = null, ticket_at = null
              from chosen
             where e.id = chosen.id and e.status = 'pending'
            returning e.*;
        -- Noted, because the end of a loop sets `found`.
        is_claimed := found;
        -- Only a look from within this turn counts: what was committed after an earlier one may be from
        -- before it, and its ticket would be used up for nothing.
        exit when is_claimed or mark.all_at >= instant;
        mark := look_for_claims(true, interval '0');
    end loop;
    if not is_claimed then
        perform park_execution();
    end if;
end
$$;

-- Marks one execution that waits as being without a ticket: one was used up for nothing.
create function park_execution() returns void
language sql
as $$
    update report_executions e
       set ticket_id = null, ticket_at = null
      from (select p.id
              from report_executions p
             where p.status is not distinct from 'pending' and p.shared_from is null
               and p.ticket_at is not null
               and coalesce(p.run_at, p.created_at) <= now()
               and coalesce(p.run_at, p.created_at)
                   >= (select min(l.starts) from waiting_lanes() l)
             order by coalesce(p.run_at, p.created_at)
             limit 1
               for update skip locked) parked
     where e.id = parked.id
$$;

-- What waits, in the order of lanes, and what will wait later.
create function waiting_executions() returns setof report_executions
language sql stable
as $$
    select e.*
      from waiting_lanes() l
     cross join lateral (
           select w.*
             from report_executions w
            where coalesce(w.executed_by, 0) = l.user_id and w.priority = l.priority
              and w.status is not distinct from 'pending'
              and w.run_at >= l.starts and w.run_at <= now()
           -- Not to be merged with the lanes: each is read by its own part of the index.
           offset 0) e
     union all
    select later.*
      from report_executions later
     where later.status is not distinct from 'pending'
       and coalesce(later.run_at, later.created_at) > now()
$$;

-- Looks at everything where nobody claims, so that what the last look missed is found.
create function look_if_nobody_claims() returns void
language plpgsql
as $$
begin
    if not exists (select from claim_marks m
                    where m.id = (select last_value from claim_mark)
                      and m.all_at > clock_timestamp() - interval '12 seconds') then
        perform pg_advisory_xact_lock(71, 19);
        perform look_for_claims(true, interval '0');
    end if;
end
$$;
