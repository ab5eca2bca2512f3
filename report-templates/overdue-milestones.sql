-- Overdue means due before `as_of` and not done by then. A completion date decides when there
-- is one, so that the report of a past day shows what was overdue on that day; without a date
-- the status is taken at its word. Due on the day itself is not overdue yet.
with open_milestones as (
    select m.id,
           m.project_id,
           m.title,
           m.status,
           m.due_date,
           :as_of - m.due_date as days_overdue
      from project_milestones m
     where not coalesce(m.completed_date <= :as_of, m.status = 'completed')
),
leaders as (
    select m.project_id,
           string_agg(
               coalesce(nullif(btrim(concat_ws(' ', u.first_name, u.last_name)), ''), u.username),
               '; ' order by u.last_name, u.first_name, u.username
           ) as names,
           array_agg(u.email::text order by u.last_name, u.first_name, u.username) as emails
      from project_members m
      join users u on u.id = m.user_id
     where m.role = 'leader'
       and m.joined_date <= :as_of
       and (m.left_date is null or m.left_date > :as_of)
       and u.deleted_at is null
     group by m.project_id
)
select o.due_date as due_date,
       o.days_overdue as days_overdue,
       case
           when o.days_overdue <= 30 then 'up to 30 days'
           when o.days_overdue <= 90 then '31 to 90 days'
           when o.days_overdue <= 365 then '91 to 365 days'
           else 'over a year'
       end as overdue_band,
       o.id as milestone_id,
       o.title as milestone,
       o.status as milestone_status,
       p.id as project_id,
       p.title as project,
       p.status as project_status,
       p.end_date as project_end_date,
       count(*) over (partition by p.id) as overdue_in_project,
       l.names as leaders,
       l.emails as leader_emails
  from open_milestones o
  join innovation_projects p on p.id = o.project_id
  left join leaders l on l.project_id = p.id
 where o.days_overdue >= greatest(:min_days_overdue, 1)
   and (:project_statuses is null or p.status = any(:project_statuses))
   and (:project_id is null or p.id = :project_id)
 order by o.due_date, p.title, p.id, o.id
