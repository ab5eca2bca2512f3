-- What a report may see. Run by `registrar migrate up` after the migrations, every time and whole,
-- so that a table taken out of this list is taken from the role too. Where the caller may not do
-- this, it prints this file for an administrator.
--
-- Reports are SQL that people write, so they run as a login role of their own: SET ROLE is no
-- sandbox, because a query can set_config('role', …) back. The role is a member of nothing, owns
-- nothing, and reads only what is named here: no password hashes, no tokens, no queue, no
-- executions of others.
do $$
begin
    if not exists (select from pg_catalog.pg_roles where rolname = 'registrar_report') then
        begin
            create role registrar_report login noinherit;
        exception when duplicate_object or unique_violation then
            null; -- another database of this cluster was faster: roles are shared
        end;
    end if;
end
$$;

-- Defence in depth: each of these is set again by the engine for every transaction.
do $$
begin
    alter role registrar_report set default_transaction_read_only = on;
    alter role registrar_report set client_connection_check_interval = '500ms';
    alter role registrar_report set idle_in_transaction_session_timeout = '60s';
exception when sqlstate 'XX000' then
    null; -- "tuple concurrently updated": another database sets the same values at this moment
end
$$;

-- Only a superuser may limit this; elsewhere an administrator should.
do $$
begin
    alter role registrar_report set temp_file_limit = '10GB';
exception when insufficient_privilege then
    raise notice 'temp_file_limit of registrar_report is left as it is: only a superuser sets it';
          when sqlstate 'XX000' then
    null;
end
$$;

-- To see and end its backends: pg_cancel_backend and pg_stat_activity ask for this.
do $$
begin
    if not pg_catalog.pg_has_role(current_user, 'registrar_report', 'usage') then
        execute pg_catalog.format('grant registrar_report to %I', current_user);
    end if;
end
$$;

revoke all on all tables in schema public from registrar_report;
grant usage on schema public to registrar_report;

grant select on
    roles, permissions, user_roles, role_permissions,
    institutions, faculties, departments, programs, courses, course_prerequisites,
    academic_sessions, enrollments, course_enrollments,
    innovation_projects, project_members, project_milestones,
    audit_logs
    to registrar_report;

-- Every column but the password.
grant select (
    id, username, email, first_name, last_name, is_active, is_staff, is_superuser, date_joined,
    last_login, phone_number, date_of_birth, gender, profile_picture, address, city, country,
    postal_code, deleted_at
) on users to registrar_report;
