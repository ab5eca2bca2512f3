-- Statuses are shown in the order a project passes through them, not by the alphabet; one the
-- list does not know comes last. A milestone with a completion date up to `as_of` is done
-- whatever its status says; one marked completed without a date is taken at its word.
with milestones as (
    select m.project_id,
           m.due_date,
           coalesce(m.completed_date <= :as_of, m.status = 'completed') as is_done
      from project_milestones m
),
progress as (
    select project_id,
           count(*) as milestones,
           count(*) filter (where is_done) as done,
           count(*) filter (where not is_done and due_date < :as_of) as overdue,
           min(due_date) filter (where not is_done) as next_due
      from milestones
     group by project_id
),
teams as (
    select m.project_id,
           count(distinct m.user_id) as people,
           count(distinct m.user_id) filter (where m.role = 'leader') as leaders,
           count(distinct m.user_id) filter (where m.role in ('mentor', 'advisor')) as advisers
      from project_members m
     where m.joined_date <= :as_of
       and (m.left_date is null or m.left_date > :as_of)
     group by m.project_id
)
select p.status as status,
       count(*) over (partition by p.status) as projects_in_status,
       p.id as project_id,
       p.title as title,
       p.start_date as start_date,
       p.end_date as end_date,
       p.end_date - p.start_date as planned_days,
       coalesce(p.end_date < :as_of and p.status in ('approved', 'in_progress'), false)
           as is_late,
       coalesce(t.people, 0) as team_size,
       coalesce(t.leaders, 0) as leaders,
       coalesce(t.advisers, 0) as mentors_and_advisors,
       coalesce(g.milestones, 0) as milestones,
       coalesce(g.done, 0) as milestones_done,
       coalesce(g.overdue, 0) as milestones_overdue,
       round(g.done::numeric / nullif(g.milestones, 0), 4) as progress,
       g.next_due as next_due_date,
       p.created_at as created_at,
       p.updated_at as last_changed,
       p.problem_statement as problem_statement,
       p.description as description
  from innovation_projects p
  left join progress g on g.project_id = p.id
  left join teams t on t.project_id = p.id
 where (:statuses is null or p.status = any(:statuses))
   and (:started_from is null or p.start_date >= :started_from)
   and (:started_to is null or p.start_date <= :started_to)
 order by array_position(
              array['draft', 'submitted', 'in_review', 'approved', 'in_progress',
                    'completed', 'rejected'],
              p.status::text
          ),
          p.status, p.start_date, p.title, p.id
