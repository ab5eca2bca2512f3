-- Ranked on the average as it is published, rounded to two decimals: two students who are shown
-- the same figure share a rank. `rank` leaves a gap after a tie (1, 1, 3),
-- `dense_rank` does not (1, 1, 2).
with results as (
    select ce.enrollment_id,
           c.credits,
           ce.grade_points,
           row_number() over (
               partition by ce.enrollment_id, ce.course_id
               order by s.start_date desc, s.id desc, ce.id desc
           ) as from_latest,
           row_number() over (
               partition by ce.enrollment_id, ce.course_id
               order by ce.grade_points desc, s.start_date desc, s.id desc, ce.id desc
           ) as from_best
      from course_enrollments ce
      join courses c on c.id = ce.course_id
      join academic_sessions s on s.id = ce.academic_session_id
     where ce.status <> 'dropped'
       and ce.grade_points is not null
       and (:session_code is null or s.code = :session_code)
),
averages as (
    select enrollment_id,
           count(*) as results_counted,
           sum(credits) as credits_counted,
           sum(credits * grade_points) as quality_points,
           round(sum(credits * grade_points) / nullif(sum(credits), 0), 2) as gpa
      from results
     where case :repeats
               when 'latest' then from_latest = 1
               when 'best' then from_best = 1
               else true
           end
     group by enrollment_id
),
entitled as (
    select a.enrollment_id,
           a.results_counted,
           a.credits_counted,
           a.quality_points,
           a.gpa,
           e.enrollment_date,
           e.status,
           u.username,
           u.first_name,
           u.last_name,
           i.code as institution_code,
           p.code as programme_code,
           p.name as programme,
           case :rank_within when 'programme' then p.id when 'institution' then i.id end
               as group_id
      from averages a
      join enrollments e on e.id = a.enrollment_id
      join users u on u.id = e.student_id
      join programs p on p.id = e.program_id
      join departments d on d.id = p.department_id
      join faculties f on f.id = d.faculty_id
      join institutions i on i.id = f.institution_id
     where u.deleted_at is null
       and a.gpa is not null
       and (:min_credits is null or a.credits_counted >= :min_credits)
       and (:enrollment_status is null or e.status = :enrollment_status)
       and (:institution_code is null or i.code = :institution_code)
       and (:programme_code is null or p.code = :programme_code)
),
ranked as (
    select enrollment_id,
           results_counted,
           credits_counted,
           quality_points,
           gpa,
           enrollment_date,
           status,
           username,
           first_name,
           last_name,
           institution_code,
           programme_code,
           programme,
           group_id,
           rank() over by_gpa as rank,
           dense_rank() over by_gpa as dense_rank,
           count(*) over (partition by group_id, gpa) as sharing_rank,
           count(*) over (partition by group_id) as ranked_students,
           cume_dist() over by_gpa as top_share
      from entitled
    window by_gpa as (partition by group_id order by gpa desc)
)
select case when :rank_within <> 'all' then institution_code end as ranking_institution,
       case when :rank_within = 'programme' then programme_code end as ranking_programme,
       rank as rank,
       dense_rank as dense_rank,
       sharing_rank > 1 as is_tied,
       sharing_rank as sharing_rank,
       ranked_students as ranked_students,
       top_share as top_share,
       username as username,
       first_name as first_name,
       last_name as last_name,
       institution_code as institution_code,
       programme_code as programme_code,
       programme as programme,
       enrollment_date as enrolled_on,
       status as enrollment_status,
       results_counted as results_counted,
       credits_counted as credits_counted,
       quality_points as quality_points,
       gpa as gpa
  from ranked
 where :top is null or rank <= :top
 order by ranking_institution, ranking_programme, group_id, rank,
          last_name, first_name, username, enrollment_id
