-- Students, their roles and their enrollments. Student n is user 1000 + n, `s` and n in six
-- digits by name; which session a student began in, and how it went, is picked from n.

-- Four of five begin in the first semester, and each intake is a little larger than the last.
create temp table sample_intakes on commit drop as
select
    id,
    start_date,
    sum(weight) over (order by id) - weight as first,
    sum(weight) over (order by id) as beyond,
    sum(weight) over () as total
  from academic_sessions
 cross join lateral (
    select (case when code like '%S1' then 8 else 2 end) * (10 + id) as weight
  ) as weighed;

create temp table sample_students on commit drop as
select
    no,
    1000 + no as user_id,
    sample_intakes.id as intake,
    start_date - 30 + pg_temp.pick('joined ', no, 20) as joined,
    start_date,
    -- Few begin with a master's degree, and 34 is closed.
    case
        when program in (2, 6, 11) and pg_temp.chance('not a master ', no, 800) then program - 1
        when program = 34 and sample_intakes.id > 8 then 1
        else program
    end as program_id
  from sample_settings
 cross join lateral generate_series(1, students) as no
  -- The smaller of two picks: early programmes are large, late ones small.
 cross join lateral (
    select 1 + least(
        pg_temp.pick('program a ', no, 34), pg_temp.pick('program b ', no, 34)
    ) as program
  ) as choice
  join sample_intakes
    on pg_temp.pick('intake ', no, total::integer) >= first
   and pg_temp.pick('intake ', no, total::integer) < beyond;

analyze sample_students;

insert into users (
    id, username, email, password, first_name, last_name, is_active, is_staff, is_superuser,
    date_joined, last_login, phone_number, date_of_birth, gender, profile_picture, address, city,
    country, postal_code, deleted_at
)
select
    user_id,
    username,
    case student.no
        when 3 then 'n.o''brien+tag@students.tesc.example'
        when 5 then '小明@学生.example'
        when 18 then repeat('w', 232) || '@students.tesc.example'
        else username || '@students.tesc.example'
    end,
    pg_temp.password(user_id),
    case when odd.no is null then pg_temp.given_name(user_id, gender) else odd.first_name end,
    case when odd.no is null then pg_temp.family_name(user_id) else odd.last_name end,
    deleted_at is null and not pg_temp.chance('inactive ', user_id, 30),
    false,
    false,
    date_joined,
    case
        when pg_temp.chance('seen ', user_id, 920)
            then pg_temp.moment(
                'last login ', user_id,
                joined + 1 + pg_temp.pick('seen day ', user_id, today - joined - 1)
            )
    end,
    pg_temp.phone_number(user_id),
    case
        when not pg_temp.chance('birth unknown ', user_id, 40)
            then joined - 6570 - pg_temp.pick('born ', user_id, 3000)
    end,
    gender,
    case pg_temp.pick('picture ', user_id, 10)
        when 0 then 'avatars/' || username || '.jpg'
        when 1 then ''
    end,
    case when student.no = 4
        then E'1 First Street\nSecond line\r\nThird, "quoted" line\n'
        else pg_temp.address(user_id, city)
    end,
    case when not pg_temp.chance('city unknown ', user_id, 50) then city end,
    case pg_temp.pick('country ', user_id, 100)
        when 0 then null
        when 1 then ''
        when 2 then 'Côte d''Ivoire'
        when 3 then 'Moçambique'
        when 4 then 'Congo, Democratic Republic of the'
        else 'Zimbabwe'
    end,
    case pg_temp.pick('postal ', user_id, 10) when 0 then '00263' when 1 then '' end,
    deleted_at
  from (
    select
        sample_students.*,
        today,
        's' || lpad(no::text, 6, '0') as username,
        pg_temp.moment('joined ', user_id, joined) as date_joined,
        pg_temp.city(user_id) as city,
        -- Of 100, one says "other", one an empty string, and three nothing.
        case pg_temp.pick('gender ', user_id, 100)
            when 0 then 'other'
            when 1 then ''
            when 2 then null
            when 3 then null
            when 4 then null
            else (array['female', 'male'])[1 + pg_temp.pick('sex ', user_id, 2)]
        end as gender,
        -- 40, 41 and 42 are a day before, at, and a day after the 30 days of grace.
        case
            when no between 40 and 42
                then (today - no + 11)::timestamp at time zone 'Africa/Harare'
            when no > 100 and pg_temp.chance('deleted ', no, 3)
                then pg_temp.moment(
                    'deleted ', no, today - 1 - pg_temp.pick('deleted day ', no, 60)
                )
        end as deleted_at
      from sample_students
     cross join sample_settings
  ) as student
  left join sample_odd_names as odd
    on odd.no = case
        when student.no <= 33 then student.no
        when pg_temp.chance('odd name ', student.no, 40)
            then 1 + pg_temp.pick('which odd name ', student.no, 33)
    end
 order by user_id;

insert into user_roles (id, user_id, role_id, created_at)
select (select max(id) from user_roles) + row_number() over (order by users.id),
    users.id, roles.id, date_joined
  from users
  join roles on roles.name = 'student'
 where users.id > 1000;

-- Who enrolled in what, and when; `ordinal` tells a student's enrollments apart.
create temp table sample_plans (
    student_no integer,
    ordinal integer,
    program_id integer,
    intake integer
) on commit drop;

-- One student in 100, and student 50, never enrolled.
insert into sample_plans (student_no, ordinal, program_id, intake)
select no, 1, program_id, intake
  from sample_students
 where no <> 50 and not (no > 100 and pg_temp.chance('never enrolled ', no, 10));

-- What became of each. Semester s of an enrollment falls into session intake + s - 1, or, after
-- a break of `pause` sessions behind semester `paused_after`, into one that much later.
create temp view sample_outcomes as
select
    plan.student_no,
    plan.ordinal,
    plan.program_id,
    plan.intake,
    semesters,
    first_course_id,
    paused_after,
    pause,
    left_session,
    last_session,
    case
        when left_session <= 16 then 'withdrawn'
        when last_session < 16 then 'completed'
        when 16 >= plan.intake + paused_after and 16 < plan.intake + paused_after + pause
            then 'deferred'
        else 'active'
    end as status
  from sample_plans as plan
  join sample_programs on sample_programs.id = plan.program_id
 cross join lateral (
    select
        plan.student_no::bigint * 4 + plan.ordinal as key,
        -- The years around session 5 were hard ones.
        case when plan.intake between 4 and 6 then 300 else 190 end as leave_rate
  ) as k
 cross join lateral (
    select
        1 + pg_temp.pick('paused after ', key, semesters - 1) as paused_after,
        (array[1, 1, 2])[1 + pg_temp.pick('pause ', key, 25)] as may_pause,
        case when pg_temp.chance('leaves ', key, leave_rate)
            then 1 + least(
                pg_temp.pick('leaves a ', key, semesters), pg_temp.pick('leaves b ', key, semesters)
            )
        end as left_semester
  ) as life
 cross join lateral (select coalesce(may_pause, 0) as pause) as p
 cross join lateral (
    select
        plan.intake + semesters - 1 + pause as last_session,
        plan.intake + left_semester - 1
            + case when left_semester > paused_after then pause else 0 end as left_session
  ) as ends;

analyze sample_plans;

-- Some come back after leaving, half of them to the same programme; some go on to a master's
-- degree; a few study two programmes at a time.
insert into sample_plans (student_no, ordinal, program_id, intake)
select student_no, 2, next_program, next_intake
  from sample_outcomes
 cross join lateral (
    select
        case
            when status = 'withdrawn' and pg_temp.chance('same again ', student_no, 500)
                then program_id
            when status = 'completed'
                then (array[2, 6, 11])[1 + pg_temp.pick('master ', student_no, 3)]
            else 1 + program_id % 33
        end as next_program,
        case
            when status = 'withdrawn' and pg_temp.chance('returns ', student_no, 200)
                then left_session + 1 + pg_temp.pick('returns later ', student_no, 2)
            when status = 'completed' and pg_temp.chance('goes on ', student_no, 80)
                then last_session + 1 + pg_temp.pick('goes on later ', student_no, 3)
            when status = 'active' and pg_temp.chance('two at once ', student_no, 15)
                then least(16, intake + 2)
        end as next_intake
  ) as later
 where next_intake <= 16;

create temp table sample_enrollments on commit drop as
select
    row_number() over (order by enrolled, student_no, ordinal)::integer as id,
    outcome.*,
    enrolled,
    case when status = 'withdrawn' then
        least(today, left_start + 30 + pg_temp.pick('left day ', student_no * 4 + ordinal, 60))
    end as left_date,
    case when status = 'completed' then last_end + 14 end as completed
  from sample_outcomes as outcome
 cross join sample_settings
  join lateral (
    select
        least(
            today, start_date - 10 + pg_temp.pick('enrolled ', student_no * 4 + ordinal, 20)
        ) as enrolled
      from academic_sessions
     where id = intake
  ) as begins on true
  left join lateral (
    select start_date as left_start from academic_sessions where id = left_session
  ) as leaves on true
  left join lateral (
    select end_date as last_end from academic_sessions where id = last_session
  ) as finishes on true;

analyze sample_enrollments;

insert into enrollments (
    id, student_id, program_id, enrollment_date, completion_date, status, created_at, updated_at
)
select
    id, 1000 + student_no, program_id, enrolled, completed, status,
    pg_temp.moment('enrolled ', id, enrolled),
    pg_temp.moment('enrolled ', id, coalesce(completed, left_date, enrolled))
  from sample_enrollments
 order by id;
