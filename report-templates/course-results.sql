-- Pass rate and grade points rest on registrations with grade points alone: a letter without
-- points (a pass/fail course) says nothing about a mean. Dropped registrations are counted but
-- never judged, even where a grade was left on them; an incomplete is a result still to come.
with results as (
    select ce.course_id,
           ce.academic_session_id,
           count(*) as registered,
           count(*) filter (where ce.status = 'dropped') as dropped,
           count(*) filter (
               where ce.status not in ('dropped', 'incomplete') and ce.grade is not null
           ) as graded,
           count(*) filter (
               where ce.status = 'incomplete' or (ce.status <> 'dropped' and ce.grade is null)
           ) as not_graded,
           count(ce.grade_points) filter (where ce.status <> 'dropped') as with_points,
           count(*) filter (
               where ce.status <> 'dropped' and ce.grade_points >= :pass_mark
           ) as passed,
           avg(ce.grade_points) filter (where ce.status <> 'dropped') as mean_points,
           -- Numeric throughout: the spread must not depend on the order rows are added up in.
           stddev_samp(ce.grade_points) filter (where ce.status <> 'dropped') as spread,
           percentile_disc(0.5) within group (order by ce.grade_points)
               filter (where ce.status <> 'dropped') as median_points,
           min(ce.grade_points) filter (where ce.status <> 'dropped') as lowest_points,
           max(ce.grade_points) filter (where ce.status <> 'dropped') as highest_points
      from course_enrollments ce
     group by ce.course_id, ce.academic_session_id
)
select s.code as session_code,
       i.code as institution_code,
       p.code as programme_code,
       p.name as programme,
       c.code as course_code,
       c.name as course,
       c.credits as credits,
       coalesce(c.is_core, true) as is_core,
       r.registered as registered,
       r.dropped as dropped,
       r.graded as graded,
       r.not_graded as not_graded,
       r.passed as passed,
       r.with_points - r.passed as failed,
       round(r.passed::numeric / nullif(r.with_points, 0), 4) as pass_rate,
       round(r.dropped::numeric / nullif(r.registered, 0), 4) as drop_rate,
       round(r.mean_points, 2) as mean_grade_points,
       r.median_points as median_grade_points,
       round(r.spread, 3) as standard_deviation,
       r.lowest_points as lowest_grade_points,
       r.highest_points as highest_grade_points
  from results r
  join academic_sessions s on s.id = r.academic_session_id
  join courses c on c.id = r.course_id
  join programs p on p.id = c.program_id
  join departments d on d.id = p.department_id
  join faculties f on f.id = d.faculty_id
  join institutions i on i.id = f.institution_id
 where (:institution_code is null or i.code = :institution_code)
   and (:programme_code is null or p.code = :programme_code)
   and (:course_code is null or c.code = :course_code)
   and (:session_codes is null or s.code = any(:session_codes))
   and (:min_students is null or r.registered >= :min_students)
 order by s.start_date, s.id, i.code, p.code, p.id, c.code, c.id
