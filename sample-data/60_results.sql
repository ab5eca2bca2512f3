-- Course enrollments: three courses for each semester studied, a grade where the session is
-- over, and a second attempt in the next semester for a course that was failed.

with attempts as materialized (
    select
        enrollment.id as enrollment_id,
        first_course_id + 3 * (semester - 1) + place - 1 as course_id,
        enrollment.id::bigint * 64 + 3 * semester + place as key,
        session_id,
        retry_session_id,
        left_session,
        -- What a student is capable of, and how it went on the day.
        25 + pg_temp.pick('ability ', student_no, 50)
            + pg_temp.pick('score ', enrollment.id::bigint * 64 + 3 * semester + place, 40)
            as score,
        semester = semesters as is_last
      from sample_enrollments as enrollment
     cross join lateral generate_series(1, semesters) as semester
     cross join generate_series(1, 3) as place
     cross join lateral (
        select
            intake + semester - 1
                + case when semester > paused_after then pause else 0 end as session_id,
            intake + semester
                + case when semester + 1 > paused_after then pause else 0 end as retry_session_id
     ) as timing
     where session_id <= least(16, left_session)
),
taken as (
    select
        enrollment_id, course_id, key, session_id, left_session,
        -- Nobody graduates with a failed course, so the last semester has none.
        case when is_last then greatest(score, 38) else score end as score
      from attempts
    union all
    select
        enrollment_id, course_id, key + 1000000000000, retry_session_id, left_session,
        38 + pg_temp.pick('second score ', key, 24)
      from attempts
     where score < 38 and not is_last and session_id < 16
       and retry_session_id <= least(16, left_session)
       and not pg_temp.chance('drops ', key, 15) and not pg_temp.chance('incomplete ', key, 3)
),
judged as (
    select
        taken.*,
        case
            when session_id = left_session then 'dropped'
            when pg_temp.chance('drops ', key, 15) then 'dropped'
            when session_id = 16 then 'enrolled'
            when pg_temp.chance('incomplete ', key, 3) then 'incomplete'
            else 'completed'
        end as status
      from taken
)
insert into course_enrollments (
    id, enrollment_id, course_id, academic_session_id, enrollment_date, status, grade,
    grade_points, created_at, updated_at
)
select
    row_number() over (order by session_id, enrollment_id, course_id),
    enrollment_id,
    course_id,
    session_id,
    enrolled,
    status,
    case status when 'completed' then grade when 'incomplete' then 'I' end,
    case status when 'completed' then grade_points end,
    pg_temp.moment('course ', key, enrolled),
    -- Grades are recorded in the two weeks after the session; a dropped course within a month.
    pg_temp.moment('course ', key, case status
        when 'enrolled' then enrolled
        when 'dropped' then least(today, enrolled + pg_temp.pick('dropped day ', key, 30))
        else end_date + 1 + pg_temp.pick('graded day ', key, 14)
    end)
  from judged
  join academic_sessions on academic_sessions.id = session_id
 cross join sample_settings
 cross join lateral (
    select least(today, start_date + pg_temp.pick('course day ', key, 10)) as enrolled
  ) as e
 cross join lateral (
    select width_bucket(score, array[38, 46, 53, 60, 68, 75, 82, 90]) + 1 as mark
  ) as m
 cross join lateral (
    select
        (array['F', 'D', 'C', 'C+', 'B-', 'B', 'B+', 'A-', 'A'])[mark] as grade,
        (array[0.00, 1.00, 2.00, 2.30, 2.70, 3.00, 3.30, 3.70, 4.00])[mark] as grade_points
  ) as g
 order by 1;
