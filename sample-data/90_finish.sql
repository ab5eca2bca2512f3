-- Leaves every sequence behind the last id, statistics for the planner, and nothing temporary.

do $$
declare
    filled text;
begin
    foreach filled in array array[
        'users', 'roles', 'permissions', 'user_roles', 'role_permissions', 'institutions',
        'faculties', 'departments', 'programs', 'courses', 'course_prerequisites',
        'academic_sessions', 'enrollments', 'course_enrollments', 'innovation_projects',
        'project_members', 'project_milestones', 'audit_logs'
    ]
    loop
        execute format(
            'select setval(pg_get_serial_sequence(%L, ''id''), max(id)) from %I', filled, filled
        );
    end loop;
end
$$;

analyze
    users, roles, permissions, user_roles, role_permissions, institutions, faculties,
    departments, programs, courses, course_prerequisites, academic_sessions, enrollments,
    course_enrollments, innovation_projects, project_members, project_milestones, audit_logs;

-- Temporary functions live as long as the connection, which may go on to other work.
drop view pg_temp.sample_outcomes;
drop function
    pg_temp.password(bigint), pg_temp.address(bigint, text), pg_temp.phone_number(bigint),
    pg_temp.city(bigint), pg_temp.family_name(bigint), pg_temp.given_name(bigint, text),
    pg_temp.moment(text, bigint, date), pg_temp.chance(text, bigint, integer),
    pg_temp.pick(text, bigint, integer);
