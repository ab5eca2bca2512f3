-- A cohort is everyone who enrolled in a programme in one calendar year. Completion carries a
-- date, so a completion after `as_of` still counts as studying; a withdrawal carries none in
-- this schema and counts from the moment it is recorded. On-time figures look only at entrants
-- whose time has run out by `as_of`: dividing by younger entrants would understate them.
with entrants as (
    select e.program_id,
           extract(year from e.enrollment_date)::integer as cohort_year,
           e.completion_date,
           case
               when e.completion_date > :as_of then 'studying'
               when e.status in ('completed', 'withdrawn') then e.status
               when e.status = 'active' then 'studying'
               else 'other'
           end as state,
           e.completion_date - e.enrollment_date as days_taken,
           cast(
               e.enrollment_date
                   + make_interval(
                       years => p.duration_years,
                       months => coalesce(:tolerance_months, 0)
                   )
               as date
           ) as due_date
      from enrollments e
      join programs p on p.id = e.program_id
     where e.enrollment_date <= :as_of
),
cohorts as (
    select program_id,
           cohort_year,
           count(*) as entrants,
           count(*) filter (where state = 'completed') as completed,
           count(*) filter (where state = 'withdrawn') as withdrawn,
           count(*) filter (where state = 'studying') as studying,
           count(*) filter (where state = 'other') as other,
           count(*) filter (where state = 'studying' and due_date <= :as_of)
               as studying_past_due,
           count(*) filter (where due_date <= :as_of) as due,
           count(*) filter (
               where due_date <= :as_of and state = 'completed' and completion_date <= due_date
           ) as completed_on_time,
           percentile_cont(0.5) within group (order by days_taken::double precision)
               filter (where state = 'completed') as median_days
      from entrants
     group by program_id, cohort_year
)
select i.code as institution_code,
       i.name as institution,
       p.code as programme_code,
       p.name as programme,
       p.duration_years as duration_years,
       k.cohort_year as cohort_year,
       k.entrants as entrants,
       k.completed as completed,
       k.withdrawn as withdrawn,
       k.studying as still_studying,
       k.other as other_status,
       k.studying_past_due as studying_past_due,
       round(k.completed::numeric / nullif(k.entrants, 0), 4) as completion_rate,
       round(k.withdrawn::numeric / nullif(k.entrants, 0), 4) as withdrawal_rate,
       k.due as entrants_due,
       k.completed_on_time as completed_on_time,
       round(k.completed_on_time::numeric / nullif(k.due, 0), 4) as on_time_rate,
       round((k.median_days / 365.25)::numeric, 2) as median_years_to_complete
  from cohorts k
  join programs p on p.id = k.program_id
  join departments d on d.id = p.department_id
  join faculties f on f.id = d.faculty_id
  join institutions i on i.id = f.institution_id
 where (:institution_code is null or i.code = :institution_code)
   and (:programme_code is null or p.code = :programme_code)
   and (:from_year is null or k.cohort_year >= :from_year)
   and (:to_year is null or k.cohort_year <= :to_year)
 order by i.code, p.code, p.id, k.cohort_year
