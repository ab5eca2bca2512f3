-- Left joins from the top: an institution without faculties and a faculty without departments
-- keep one row each, with the lower levels empty. Programmes are counted once per department.
with offered as (
    select department_id,
           count(*) filter (where coalesce(is_active, true)) as active_programmes,
           count(*) as programmes
      from programs
     group by department_id
),
studying as (
    select p.department_id, count(distinct e.student_id) as students
      from enrollments e
      join programs p on p.id = e.program_id
      join users u on u.id = e.student_id
     where e.status = 'active'
       and u.deleted_at is null
     group by p.department_id
)
select i.code as institution_code,
       i.name as institution,
       i.type as institution_type,
       i.address as address,
       i.city as city,
       i.postal_code as postal_code,
       i.country as country,
       i.phone as phone,
       i.email as email,
       i.website as website,
       f.code as faculty_code,
       f.name as faculty,
       d.code as department_code,
       d.name as department,
       nullif(btrim(concat_ws(' ', h.first_name, h.last_name)), '') as head_of_department,
       h.email as head_email,
       coalesce(o.programmes, 0) as programmes,
       coalesce(o.active_programmes, 0) as active_programmes,
       coalesce(n.students, 0) as active_students
  from institutions i
  left join faculties f on f.institution_id = i.id
  left join departments d on d.faculty_id = f.id
  left join users h on h.id = d.head_of_department_id and h.deleted_at is null
  left join offered o on o.department_id = d.id
  left join studying n on n.department_id = d.id
 where (:institution_code is null or i.code = :institution_code)
   and (:institution_type is null or i.type = :institution_type)
   and (:city is null or i.city = :city)
 order by i.code, f.code, f.id, d.code, d.id
