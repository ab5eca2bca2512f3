-- Every graded attempt counts in the averages, as it stood when the session ended: a repeat
-- does not rewrite an earlier session. Credits are earned once, by the first pass of a course.
-- Weights are the credits of registrations with grade points; a letter without points earns
-- nothing here and takes no part in an average.
with attempts as (
    select e.id as enrollment_id,
           u.username,
           nullif(btrim(concat_ws(' ', u.first_name, u.last_name)), '') as student,
           p.code as programme_code,
           p.name as programme,
           e.enrollment_date,
           e.status as enrollment_status,
           s.id as session_id,
           s.code as session_code,
           s.name as session,
           s.start_date,
           c.id as course_id,
           c.code as course_code,
           c.name as course,
           c.credits,
           ce.id as registration_id,
           ce.status,
           ce.grade,
           ce.grade_points,
           ce.status <> 'dropped' and ce.grade_points is not null as counts,
           ce.status <> 'dropped' and coalesce(ce.grade_points >= :pass_mark, false) as passed
      from users u
      join enrollments e on e.student_id = u.id
      join programs p on p.id = e.program_id
      join course_enrollments ce on ce.enrollment_id = e.id
      join courses c on c.id = ce.course_id
      join academic_sessions s on s.id = ce.academic_session_id
     where u.username = :student_username
       and u.deleted_at is null
       and (:programme_code is null or p.code = :programme_code)
),
numbered as (
    select enrollment_id,
           username,
           student,
           programme_code,
           programme,
           enrollment_date,
           enrollment_status,
           session_id,
           session_code,
           session,
           start_date,
           course_code,
           course,
           credits,
           registration_id,
           status,
           grade,
           grade_points,
           counts,
           case
               when status <> 'dropped'
               then count(*) filter (where status <> 'dropped') over to_this_attempt
           end as attempt,
           passed and not coalesce(bool_or(passed) over before_this_attempt, false)
               as earns_credit
      from attempts
    window to_this_attempt as (
               partition by enrollment_id, course_id
               order by start_date, session_id, registration_id
               rows between unbounded preceding and current row
           ),
           before_this_attempt as (
               partition by enrollment_id, course_id
               order by start_date, session_id, registration_id
               rows between unbounded preceding and 1 preceding
           )
)
select username as username,
       student as student,
       programme_code as programme_code,
       programme as programme,
       enrollment_date as enrolled_on,
       enrollment_status as enrollment_status,
       session_code as session_code,
       session as session,
       start_date as session_start,
       course_code as course_code,
       course as course,
       credits as credits,
       attempt::integer as attempt,
       status as result_status,
       grade as grade,
       grade_points as grade_points,
       case when counts then credits * grade_points end as quality_points,
       case when earns_credit then credits else 0 end as credits_earned,
       round(
           sum(credits * grade_points) filter (where counts) over in_session
               / nullif(sum(credits) filter (where counts) over in_session, 0),
           2
       ) as session_gpa,
       coalesce(sum(credits) filter (where earns_credit) over to_session, 0)
           as credits_earned_to_date,
       round(
           sum(credits * grade_points) filter (where counts) over to_session
               / nullif(sum(credits) filter (where counts) over to_session, 0),
           2
       ) as cumulative_gpa
  from numbered
 where coalesce(:include_dropped, true) or status <> 'dropped'
window in_session as (partition by enrollment_id, session_id),
       -- The default frame ends with the last peer: every row of a session shows the figure
       -- of the whole session.
       to_session as (partition by enrollment_id order by start_date, session_id)
 order by enrollment_date, enrollment_id, start_date, session_id, course_code, registration_id
