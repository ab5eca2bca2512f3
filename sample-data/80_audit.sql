-- Five audit rows for each student, from the day they joined to the day before sample.today,
-- with personal data where an application leaves it: in JSON, addresses and user agents.

create temp table sample_totals on commit drop as
select
    (select max(id) from course_enrollments) as course_enrollments,
    (select max(id) from enrollments) as enrollments,
    (select max(id) from innovation_projects) as projects,
    (select max(id) - 100 from users where id between 101 and 1000) as lecturers;

create temp table sample_events on commit drop as
select
    key,
    user_id as student_id,
    pg_temp.pick('event kind ', key, 100) as kind,
    -- The earlier of two picks: an account is used most while its owner studies.
    pg_temp.moment(
        'event ', key,
        joined + 1 + least(
            pg_temp.pick('event day a ', key, today - joined - 1),
            pg_temp.pick('event day b ', key, today - joined - 1)
        )
    ) as created_at
  from sample_settings
 cross join lateral generate_series(1, 5 * students) as key
  join sample_students on no = 1 + (key - 1) % students;

insert into audit_logs (
    id, user_id, action, entity_type, entity_id, old_values, new_values, ip_address, user_agent,
    created_at
)
select
    row_number() over (order by created_at, key),
    case
        when kind < 60 then student_id
        when kind < 75 then 101 + pg_temp.pick('event lecturer ', key, lecturers)
        when kind < 85 then 3
        when kind < 89 then 2
        when kind < 93 then student_id
        when kind < 97 then null
        else 1
    end,
    case
        when kind < 45 then 'login'
        when kind < 60 then 'update'
        when kind < 75 then 'grade.record'
        when kind < 80 then 'create'
        when kind < 85 then 'update'
        when kind < 89 then 'report.export'
        when kind < 93 then 'update'
        when kind < 97 then 'login.failed'
        else 'role.grant'
    end,
    case
        when kind < 60 then 'user'
        when kind < 75 then 'course_enrollment'
        when kind < 85 then 'enrollment'
        when kind < 89 then 'report'
        when kind < 93 then 'innovation_project'
        when kind < 97 then 'user'
        else 'user_role'
    end,
    case
        when kind < 60 then student_id
        when kind < 75 then 1 + pg_temp.pick('event course ', key, course_enrollments)
        when kind < 85 then 1 + pg_temp.pick('event enrollment ', key, enrollments)
        when kind < 89 then null
        when kind < 93 then 1 + pg_temp.pick('event project ', key, projects)
        when kind < 97 then null
        else student_id
    end,
    case
        when kind between 45 and 59 then jsonb_build_object(
            'phone_number', pg_temp.phone_number(key),
            'address', pg_temp.address(key, pg_temp.city(key))
        )
        when kind between 60 and 74 then '{"grade": null, "grade_points": null}'
        when kind between 80 and 84 then '{"status": "active"}'
        when kind between 89 and 92 then jsonb_build_object(
            'title', E'Untitled "draft"\n', 'tags', null
        )
    end,
    case
        when kind < 20 then null
        when kind < 45 then '{"method": "password"}'
        when kind < 60 then jsonb_build_object(
            'phone_number', pg_temp.phone_number(student_id),
            'address', pg_temp.address(student_id, pg_temp.city(student_id)),
            'email', 's' || lpad((student_id - 1000)::text, 6, '0') || '@students.tesc.example'
        )
        when kind < 75 then '{"grade": "B+", "grade_points": 3.30}'
        when kind < 80 then jsonb_build_object(
            'student', jsonb_build_object(
                'id', student_id, 'name', pg_temp.family_name(student_id)
            ),
            'status', 'active'
        )
        when kind < 85 then '{"status": "withdrawn", "reason": "moved away, \"for good\""}'
        when kind < 89 then jsonb_build_object(
            'format', 'csv', 'parameters', jsonb_build_object('student_id', student_id)
        )
        when kind < 93 then '{"title": "太阳能 – Solar ☀️", "tags": ["energy", "water, clean"]}'
        when kind < 97 then jsonb_build_object(
            'username', lower(pg_temp.family_name(key)), 'attempts', 1 + key % 5
        )
        else '{"role": "student"}'
    end,
    case
        when pg_temp.chance('event address missing ', key, 30) then null
        when pg_temp.chance('event address six ', key, 200)
            then inet '2001:db8::' + pg_temp.pick('event address ', key, 1000000000)::bigint
        -- A network rather than a host.
        when pg_temp.chance('event address net ', key, 5) then inet '10.20.0.0/16'
        else inet '10.0.0.0' + pg_temp.pick('event address ', key, 16777216)::bigint
    end,
    (array[
        'Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko)'
            ' Chrome/126',
        'Mozilla/5.0 (Linux; Android 13; "TECNO" KI5k) AppleWebKit/537.36, Chrome/125 Mobile',
        'Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 Version/17.5',
        'Opera/9.80 (J2ME/MIDP; Opera Mini/7.1; U; en) Presto/2.12',
        'curl/8.5.0', '-', '', null
    ])[1 + pg_temp.pick('event agent ', key, 8)],
    created_at
  from sample_events
 cross join sample_totals
 order by created_at, key;

-- Rows at the edge of "older than five years" in Harare: one microsecond older, exact, and one
-- younger; and one whose age nobody knows.
insert into audit_logs (
    id, user_id, action, entity_type, entity_id, old_values, new_values, ip_address, user_agent,
    created_at
)
select
    (select max(id) from audit_logs) + place,
    3,
    'edge.' || edge,
    'user',
    3,
    null,
    '{}',
    '192.0.2.1',
    null,
    cutoff + offset_from
  from sample_settings
 cross join lateral (
    select (today - interval '5 years') at time zone 'Africa/Harare' as cutoff
  ) as c
 cross join (
    values
        (1, 'before', interval '-1 microsecond'),
        (2, 'exact', interval '0'),
        (3, 'after', interval '1 microsecond'),
        (4, 'unknown', null)
  ) as edges (place, edge, offset_from)
 order by place;
