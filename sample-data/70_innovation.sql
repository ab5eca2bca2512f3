-- Innovation projects in every status, their members and milestones.

-- Project 1 is in progress, and has one milestone due the day before sample.today, one on that
-- day and one after it. Projects 1 to 14 go through the seven statuses twice.
create temp table sample_projects on commit drop as
select
    id,
    status,
    started,
    started + 120 + pg_temp.pick('project length ', id, 600) as planned_end,
    case
        when id = 1 then 1001
        when pg_temp.chance('creator unknown ', id, 30) then null
        when pg_temp.chance('creator staff ', id, 200) then 101 + pg_temp.pick('creator ', id, 40)
        else 1001 + pg_temp.pick('creator ', id, students)
    end as created_by,
    today,
    students
  from sample_settings
 cross join lateral generate_series(1, greatest(42, students / 40)) as id
 cross join lateral (
    select (array[
        'in_progress', 'completed', 'draft', 'submitted', 'in_review', 'approved', 'rejected',
        'completed', 'completed', 'in_progress', 'in_progress', 'in_progress', 'completed'
    ])[1 + case
        when id <= 14 then (id - 1) % 7
        else pg_temp.pick('project status ', id, 13)
    end] as status
  ) as s
 cross join lateral (
    select today - case
        when status = 'completed' then 800 + pg_temp.pick('project start ', id, 2000)
        when status = 'rejected' then 30 + pg_temp.pick('project start ', id, 2700)
        when status = 'in_progress' then 60 + pg_temp.pick('project start ', id, 700)
        else 10 + pg_temp.pick('project start ', id, 150)
    end as started
  ) as begins;

insert into innovation_projects (
    id, title, description, problem_statement, objectives, expected_outcomes, status,
    start_date, end_date, created_by, created_at, updated_at
)
select
    id,
    case id
        when 2 then '=SUM(1,2) — a title that starts like a formula'
        when 3 then '太阳能灌溉 / ري بالطاقة الشمسية / Солнечный полив'
        when 4 then E'Two\nlines, "quoted"'
        else (array[
            'Solar', 'Low-cost', 'Mobile', 'Open-source', 'Community', '"Smart"', 'Drought-proof'
        ])[1 + pg_temp.pick('project adjective ', id, 7)] || ' ' || (array[
            'irrigation', 'maize drying', 'clinic queueing', 'water testing, by phone',
            'mbira tutor', 'bus tracking', 'cold chain', 'biogas digester', 'school timetable',
            'grain market', 'wildlife counting'
        ])[1 + pg_temp.pick('project topic ', id, 11)] || case
            when pg_temp.chance('project place ', id, 400)
                then ' for ' || pg_temp.city(id)
            else ''
        end
    end,
    case
        -- Longer than a spreadsheet's cell may be (32,767 characters).
        when id = 5 then repeat('A description that is longer than a cell. ', 1000)
        else 'The project "' || status || E'" in short.\n\n' || repeat(
            E'We measured for a season, asked farmers, nurses and drivers, and built a first'
            || E' model; it''s cheap, works offline, and 60 % of users came back.\n',
            1 + pg_temp.pick('project text ', id, 12)
        )
    end,
    case pg_temp.pick('problem ', id, 10)
        when 0 then null
        when 1 then ''
        else 'Losses after harvest are high; repairs need parts, money and "connections".'
    end,
    case when not pg_temp.chance('no objectives ', id, 150)
        then E'1. Measure\n2. Build, test; build again\n3. Hand over'
    end,
    case when not pg_temp.chance('no outcomes ', id, 250)
        then 'A prototype; a paper; – perhaps – a company. Cost: < $1,000 & falling.'
    end,
    status,
    case when status <> 'draft' then started end,
    case
        when status = 'completed' then planned_end
        when status in ('approved', 'in_progress') and not pg_temp.chance('open end ', id, 200)
            then planned_end
    end,
    created_by,
    pg_temp.moment('project ', id, started - 5),
    pg_temp.moment('project ', id, case
        when status = 'completed' then planned_end
        else started + pg_temp.pick('project touched ', id, today - started)
    end)
  from sample_projects
 order by id;

-- The creator leads; up to five students, all different, join; every other project has a mentor.
insert into project_members (
    id, project_id, user_id, role, joined_date, left_date, created_at
)
select
    row_number() over (order by project_id, place),
    project_id,
    user_id,
    role,
    joined,
    case
        when pg_temp.chance('left project ', project_id * 8 + place, 120)
            then least(
                today, joined + 30 + pg_temp.pick('left after ', project_id * 8 + place, 200)
            )
    end,
    pg_temp.moment('member ', project_id * 8 + place, joined)
  from (
    select id as project_id, 0 as place, created_by as user_id, 'leader' as role, started, today
      from sample_projects
     where created_by is not null
    union all
    select
        id, place,
        1001 + (pg_temp.pick('member ', id, students) + 13 * place) % students,
        'member', started, today
      from sample_projects
     cross join lateral generate_series(1, pg_temp.pick('members ', id, 6)) as place
    union all
    select
        id, 6, 101 + pg_temp.pick('mentor ', id, 40), (array['mentor', 'advisor'])[1 + id % 2],
        started, today
      from sample_projects
     where pg_temp.chance('has mentor ', id, 500)
  ) as member
 cross join lateral (
    select least(today, started + pg_temp.pick('joined ', project_id * 8 + place, 60)) as joined
  ) as j;

insert into project_milestones (
    id, project_id, title, description, due_date, completed_date, status, created_at, updated_at
)
select
    row_number() over (order by project_id, place),
    project_id,
    (array[
        'Survey', 'Prototype', 'Field test', 'Report, first draft', 'Hand-over', '"Demo day"'
    ])[place],
    case pg_temp.pick('milestone text ', key, 3)
        when 0 then null
        when 1 then ''
        else E'Done when:\n* shown to the mentor\n* written up, "signed"'
    end,
    due,
    completed,
    case
        when completed is not null then 'completed'
        -- Nobody keeps the status up to date: overdue milestones come with each of the three.
        when due < today then (array['delayed', 'in_progress', 'pending'])[
            1 + pg_temp.pick('milestone status ', key, 3)
        ]
        when due < today + 60 then 'in_progress'
        else 'pending'
    end,
    pg_temp.moment('milestone ', key, started),
    pg_temp.moment('milestone ', key, coalesce(completed, started))
  from (
    select
        id as project_id,
        place,
        id * 8 + place as key,
        started,
        today,
        status,
        case id
            when 1 then today + place - 2
            else started + place * (planned_end - started) / 6
        end as due
      from sample_projects
     cross join lateral generate_series(
        1, case when id = 1 then 3 else 3 + pg_temp.pick('milestones ', id, 4) end
     ) as place
     where status in ('approved', 'in_progress', 'completed')
  ) as milestone
 cross join lateral (
    select case
        when project_id = 1 then null
        when status = 'completed'
            then due + pg_temp.pick('milestone done ', key, 40) - 20
        when status = 'in_progress' and due < today and pg_temp.chance('milestone kept ', key, 700)
            then least(today, due + pg_temp.pick('milestone done ', key, 40) - 20)
    end as completed
  ) as done;
