drop trigger report_executions_waits_from_earlier on report_executions;
drop trigger report_executions_inserted_early on report_executions;

create or replace function claimable_executions(per_user integer, user_cap integer, server_cap integer)
returns table (id bigint, priority smallint, turn bigint, served_at timestamp with time zone,
               run_at timestamp with time zone)
language sql stable
as $$
    with recursive waiting (user_id) as (
        (select coalesce(executed_by, 0)
           from report_executions
          where status = 'pending'
          order by coalesce(executed_by, 0)
          limit 1)
        union all
        select (select coalesce(e.executed_by, 0)
                  from report_executions e
                 where e.status = 'pending' and coalesce(e.executed_by, 0) > waiting.user_id
                 order by coalesce(e.executed_by, 0)
                 limit 1)
          from waiting
         where waiting.user_id is not null
    ),
    ranked as (
        select next.id, next.priority, next.run_at, next.max_concurrent, served.served_at,
               running.executions + row_number() over users as turn,
               running.executions
                   + row_number() over (partition by waiting.user_id
                                        order by next.priority desc, next.run_at, next.id)
                   as of_user,
               same.executions
                   + row_number() over (partition by waiting.user_id, next.report_definition_id
                                        order by next.priority desc, next.run_at, next.id)
                   as of_definition
          from waiting
         cross join lateral (
               select count(*) as executions
                 from report_executions r
                where coalesce(r.executed_by, 0) = waiting.user_id
                  and r.status in ('processing', 'cancelling')) running
         cross join lateral (
               select max(s.started_at) as served_at
                 from report_executions s
                where coalesce(s.executed_by, 0) = waiting.user_id
                  and s.started_at is not null) served
         cross join lateral (
               select e.id, e.priority, e.run_at, e.report_definition_id, e.max_concurrent
                 from report_executions e
                where coalesce(e.executed_by, 0) = waiting.user_id
                  and e.status = 'pending' and e.run_at <= now() and e.shared_from is null
                  and (user_cap is null or running.executions < user_cap)
                  -- Before the limit: what a cap keeps back must not hide what is behind it.
                  and (e.max_concurrent is null
                       or e.max_concurrent > (
                           select count(*)
                             from report_executions r
                            where coalesce(r.executed_by, 0) = waiting.user_id
                              and r.report_definition_id = e.report_definition_id
                              and r.status in ('processing', 'cancelling')))
                order by e.priority desc, e.run_at, e.id
                limit per_user) next
         cross join lateral (
               select count(*) as executions
                 from report_executions r
                where coalesce(r.executed_by, 0) = waiting.user_id
                  and r.report_definition_id = next.report_definition_id
                  and r.status in ('processing', 'cancelling')) same
         where waiting.user_id is not null
        window users as (partition by waiting.user_id, next.priority
                         order by next.run_at, next.id)
    )
    select ranked.id, ranked.priority, ranked.turn, ranked.served_at, ranked.run_at
      from ranked
     where (user_cap is null or ranked.of_user <= user_cap)
       and (ranked.max_concurrent is null or ranked.of_definition <= ranked.max_concurrent)
       and (server_cap is null
            or server_cap > (select count(*)
                               from report_executions r
                              where r.status in ('processing', 'cancelling')))
     order by ranked.priority desc, ranked.turn, ranked.served_at nulls first, ranked.run_at,
              ranked.id
$$;

create or replace function claim_execution(
    owner text, lease_secs double precision, user_cap integer, server_cap integer)
returns setof report_executions
language plpgsql
as $$
begin
    -- 'Claim' as a number; of this database alone, as advisory locks are.
    perform pg_advisory_xact_lock(71, 19);
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
               started_at = now(), progress_rows = 0, progress_bytes = 0,
               backend_pid = null, backend_start = null,
               ticket_id = null, ticket_at = null
          from chosen
         where e.id = chosen.id and e.status = 'pending'
        returning e.*;
    if not found then
        update report_executions e
           set ticket_id = null, ticket_at = null
          from (select p.id
                  from report_executions p
                 where p.status = 'pending' and p.run_at <= now() and p.shared_from is null
                   and p.ticket_at is not null
                 order by p.run_at, p.id
                 limit 1
                   for update skip locked) parked
         where e.id = parked.id;
    end if;
end
$$;

drop function look_if_nobody_claims;
drop function waiting_executions;
drop function park_execution;
drop function forget_claim_mark;
drop function look_for_claims;
drop function running_executions;
drop function waiting_lanes;
drop table claim_marks;
drop sequence claim_mark;

drop index idx_report_executions_arrived;
create index idx_report_executions_pending on report_executions (run_at) where status = 'pending';
drop index idx_report_executions_waiting;
create index idx_report_executions_waiting on report_executions
    ((coalesce(executed_by, 0)), priority desc, run_at, id)
    where status = 'pending';
drop index idx_report_executions_running;
create index idx_report_executions_running on report_executions
    ((coalesce(executed_by, 0)), report_definition_id)
    where status in ('processing', 'cancelling');
create index idx_report_executions_leased on report_executions (lease_until)
    where status in ('processing', 'cancelling');
