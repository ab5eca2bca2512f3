-- The second try of a claim, which looks at sixteen of each lane and not at two, was left out where
-- the first had looked at everything just before: with the first two of every lane locked (somebody
-- cancels them) the claim took nothing and its ticket was used up, though more waited.
--
-- Down: loses nothing.
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
                  from claimable_executions(case try when 1 then 2 else 16 end, user_cap,
                                            server_cap) next
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
        exit when is_claimed or try = 2;
        -- Only a look from within this turn counts: what was committed after an earlier one may be from
        -- before it, and its ticket would be used up for nothing.
        if mark.all_at < instant then
            mark := look_for_claims(true, interval '0');
        end if;
    end loop;
    if not is_claimed then
        perform park_execution();
    end if;
end
$$;
