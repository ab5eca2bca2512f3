-- Prerequisites are followed to the end. `union` drops pairs already met, and the chain stops
-- after 32 steps, so that a cycle in the data ends the walk and is reported, not looped over.
with recursive chain (course_id, required_id, steps) as (
    select course_id, prerequisite_course_id, 1
      from course_prerequisites
     union
    select chain.course_id, cp.prerequisite_course_id, chain.steps + 1
      from chain
      join course_prerequisites cp on cp.course_id = chain.required_id
     where chain.steps < 32
),
chains as (
    select course_id,
           count(distinct required_id) filter (where required_id <> course_id) as all_required,
           max(steps) as longest,
           bool_or(required_id = course_id) as is_circular
      from chain
     group by course_id
),
direct as (
    -- A code is unique within its programme only: one from elsewhere is written with it.
    select cp.course_id,
           array_agg(
               case
                   when r.program_id = c.program_id then r.code
                   else rp.code || '/' || r.code
               end::text
               order by r.code, r.id
           ) as codes,
           string_agg(r.name, '; ' order by r.code, r.id) as titles
      from course_prerequisites cp
      join courses c on c.id = cp.course_id
      join courses r on r.id = cp.prerequisite_course_id
      join programs rp on rp.id = r.program_id
     group by cp.course_id
),
followers as (
    select prerequisite_course_id as course_id, count(distinct course_id) as courses
      from course_prerequisites
     group by prerequisite_course_id
)
select i.code as institution_code,
       p.code as programme_code,
       p.name as programme,
       c.code as course_code,
       c.name as course,
       c.credits as credits,
       c.hours_per_week as hours_per_week,
       coalesce(c.is_core, true) as is_core,
       coalesce(c.is_active, true) and coalesce(p.is_active, true) as is_offered,
       direct.codes as prerequisites,
       direct.titles as prerequisite_titles,
       coalesce(chains.all_required, 0) as all_prerequisites,
       case when coalesce(chains.longest, 0) < 32 then coalesce(chains.longest, 0) end
           as longest_chain,
       coalesce(chains.is_circular, false) as is_circular,
       coalesce(followers.courses, 0) as required_by,
       c.description as description,
       c.updated_at as last_changed
  from courses c
  join programs p on p.id = c.program_id
  join departments d on d.id = p.department_id
  join faculties f on f.id = d.faculty_id
  join institutions i on i.id = f.institution_id
  left join direct on direct.course_id = c.id
  left join chains on chains.course_id = c.id
  left join followers on followers.course_id = c.id
 where (:institution_code is null or i.code = :institution_code)
   and (:programme_codes is null or p.code = any(:programme_codes))
   and (:min_credits is null or c.credits >= :min_credits)
   and (not coalesce(:core_only, false) or coalesce(c.is_core, true))
   and (coalesce(:include_inactive, false)
        or (coalesce(c.is_active, true) and coalesce(p.is_active, true)))
 order by i.code, p.code, p.id, c.code, c.id
