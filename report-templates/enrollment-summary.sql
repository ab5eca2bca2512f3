-- Registration, not the programme enrollment, is what places a student in a session: the
-- schema dates an enrollment but gives it no session. A student is new in the first session
-- with a registration under the programme, so that readmitted students do not count twice.
with registered as (
    select e.program_id,
           ce.academic_session_id,
           e.student_id,
           count(*) as registrations,
           count(*) filter (where ce.status = 'dropped') as registrations_dropped,
           coalesce(sum(c.credits) filter (where ce.status <> 'dropped'), 0) as credits
      from course_enrollments ce
      join enrollments e on e.id = ce.enrollment_id
      join courses c on c.id = ce.course_id
     group by e.program_id, ce.academic_session_id, e.student_id
),
placed as (
    -- Numbered before any session is filtered out, or the first session shown would look new.
    select r.program_id,
           r.academic_session_id,
           r.registrations,
           r.registrations_dropped,
           r.credits,
           lower(u.gender) as gender,
           row_number() over (
               partition by r.program_id, r.student_id
               order by s.start_date, s.id
           ) = 1 as is_new
      from registered r
      join academic_sessions s on s.id = r.academic_session_id
      join users u on u.id = r.student_id
),
counted as (
    select program_id,
           academic_session_id,
           count(*) as students,
           count(*) filter (where is_new) as new_students,
           count(*) filter (where registrations = registrations_dropped) as withdrew_from_all,
           count(*) filter (where gender in ('f', 'female')) as female,
           count(*) filter (where gender in ('m', 'male')) as male,
           sum(registrations)::bigint as registrations,
           sum(registrations_dropped)::bigint as registrations_dropped,
           sum(credits)::bigint as credits
      from placed
     group by program_id, academic_session_id
)
select i.code as institution_code,
       i.name as institution,
       p.code as programme_code,
       p.name as programme,
       p.degree_type as degree_type,
       s.code as session_code,
       s.name as session,
       s.start_date as session_start,
       coalesce(s.is_current, false) as is_current_session,
       coalesce(n.students, 0) as students,
       coalesce(n.new_students, 0) as new_students,
       coalesce(n.students - n.new_students, 0) as continuing_students,
       coalesce(n.withdrew_from_all, 0) as students_dropped_all,
       coalesce(n.female, 0) as female,
       coalesce(n.male, 0) as male,
       coalesce(n.students - n.female - n.male, 0) as gender_other_or_unknown,
       coalesce(n.registrations, 0) as course_registrations,
       coalesce(n.registrations_dropped, 0) as course_registrations_dropped,
       coalesce(n.credits, 0) as credits_registered,
       round(n.credits::numeric / nullif(n.students, 0), 2) as credits_per_student
  from programs p
  join departments d on d.id = p.department_id
  join faculties f on f.id = d.faculty_id
  join institutions i on i.id = f.institution_id
 cross join academic_sessions s
  left join counted n on n.program_id = p.id and n.academic_session_id = s.id
 where (:institution_code is null or i.code = :institution_code)
   and (:programme_code is null or p.code = :programme_code)
   and (:session_codes is null or s.code = any(:session_codes))
   and (coalesce(:include_empty, false) or n.students is not null)
 order by i.code, p.code, p.id, s.start_date, s.id
