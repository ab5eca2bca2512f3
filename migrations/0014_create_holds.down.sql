do $$
begin
    if exists (select from holds where released_at is null and (until is null or until > now())) then
        raise exception 'a hold is in force'
            using hint = 'Release it with `registrar hold release` first.';
    end if;
end
$$;

drop table holds;

drop index idx_enrollments_completion_date;
drop index idx_academic_sessions_end_date;
drop index idx_innovation_projects_end_date;
drop index idx_report_executions_completed_at;
