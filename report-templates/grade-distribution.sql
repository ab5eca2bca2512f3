-- Shares are of the graded registrations of the same group; registrations still without a
-- grade, incompletes among them, are reported beside and never dilute a share. Grades are
-- ordered by their points, best first, because letters do not sort so (A+ before A); grades
-- without points come last.
with taken as (
    select ce.academic_session_id,
           c.program_id,
           case when :level = 'course' then c.id end as course_id,
           case when ce.status <> 'incomplete' then ce.grade end as grade,
           ce.grade_points
      from course_enrollments ce
      join courses c on c.id = ce.course_id
     where ce.status <> 'dropped'
       and (:course_code is null or c.code = :course_code)
),
counted as (
    select academic_session_id,
           program_id,
           course_id,
           grade,
           max(grade_points) as grade_points,
           count(*) as students
      from taken
     group by academic_session_id, program_id, course_id, grade
),
shared as (
    -- The rows without a grade are needed here for `not_graded` and leave below.
    select academic_session_id,
           program_id,
           course_id,
           grade,
           grade_points,
           students,
           coalesce(sum(students) filter (where grade is not null) over whole, 0) as graded,
           coalesce(sum(students) filter (where grade is null) over whole, 0) as not_graded,
           sum(students) filter (where grade is not null) over best_first as graded_so_far
      from counted
    window whole as (partition by academic_session_id, program_id, course_id),
           best_first as (
               partition by academic_session_id, program_id, course_id
               order by grade_points desc nulls last, grade
               rows between unbounded preceding and current row
           )
)
select s.code as session_code,
       i.code as institution_code,
       p.code as programme_code,
       p.name as programme,
       c.code as course_code,
       c.name as course,
       r.grade as grade,
       r.grade_points as grade_points,
       r.students as students,
       round(r.students / nullif(r.graded, 0), 4) as share,
       round(r.graded_so_far / nullif(r.graded, 0), 4) as cumulative_share,
       r.graded::bigint as graded_registrations,
       r.not_graded::bigint as not_yet_graded
  from shared r
  join academic_sessions s on s.id = r.academic_session_id
  join programs p on p.id = r.program_id
  join departments d on d.id = p.department_id
  join faculties f on f.id = d.faculty_id
  join institutions i on i.id = f.institution_id
  left join courses c on c.id = r.course_id
 where r.grade is not null
   and (:min_students is null or r.graded >= :min_students)
   and (:institution_code is null or i.code = :institution_code)
   and (:programme_code is null or p.code = :programme_code)
   and (:session_codes is null or s.code = any(:session_codes))
 order by s.start_date, s.id, i.code, p.code, p.id, c.code, c.id,
          r.grade_points desc nulls last, r.grade
