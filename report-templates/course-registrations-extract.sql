-- The widest and longest of the reports: one row per registration, for spreadsheets and for
-- other systems. Ordered by id, which the primary key already gives: no sort stands between
-- the first row and the file.
select ce.id as registration_id,
       u.username as username,
       u.first_name as first_name,
       u.last_name as last_name,
       u.gender as gender,
       u.date_of_birth as date_of_birth,
       i.code as institution_code,
       p.code as programme_code,
       c.code as course_code,
       c.name as course,
       c.credits as credits,
       s.code as session_code,
       ce.enrollment_date as registered_on,
       ce.status as status,
       ce.grade as grade,
       ce.grade_points as grade_points,
       case when ce.status <> 'dropped' then c.credits * ce.grade_points end as quality_points,
       ce.updated_at as last_changed
  from course_enrollments ce
  join enrollments e on e.id = ce.enrollment_id
  join users u on u.id = e.student_id
  join courses c on c.id = ce.course_id
  join programs p on p.id = c.program_id
  join departments d on d.id = p.department_id
  join faculties f on f.id = d.faculty_id
  join institutions i on i.id = f.institution_id
  join academic_sessions s on s.id = ce.academic_session_id
 where u.deleted_at is null
   and (:institution_code is null or i.code = :institution_code)
   and (:programme_code is null or p.code = :programme_code)
   and (:session_codes is null or s.code = any(:session_codes))
   and (:status is null or ce.status = :status)
 order by ce.id
