-- The accounts tests may rely on (README), and the lecturers, one for 50 students.

insert into users (
    id, username, email, password, first_name, last_name, is_active, is_staff, is_superuser,
    date_joined, last_login, phone_number, date_of_birth, gender, profile_picture, address, city,
    country, postal_code, deleted_at
)
select
    id, username, username || '@tesc.example', '!' || md5(username), first_name, last_name,
    is_active, is_staff, is_superuser, joined, last_seen, phone, born, gender, null, address,
    city, country, null, deleted_at
  from (
    select
        account.*,
        pg_temp.moment('joined ', id, today - 3000 - id) as joined,
        case when is_active then pg_temp.moment('last login ', id, today - 1) end as last_seen,
        case id
            when 9 then (today - 10)::timestamp at time zone 'Africa/Harare'
        end as deleted_at
      from (
        values
            (1, 'admin', 'Admin', 'Admin', true, true, true,
                '+263 24 700 0001', date '1975-03-01', null, '1 Main Street, Harare',
                'Harare', 'Zimbabwe'),
            (2, 'ana', 'Ana', 'da Silva', true, true, false,
                '+263 77 100 0002', '1988-02-29', 'female', E'2 Fife Street\nFlat 7\nBulawayo',
                'Bulawayo', 'Zimbabwe'),
            (3, 'rui', 'Rui', 'Gonçalves', true, true, false,
                '0771000003', '1979-12-31', 'male', '3 Rua da Independência, Beira',
                'Beira', 'Moçambique'),
            (4, 'audit', 'Audrey', 'Tsvangirai', true, true, false,
                null, null, null, null, 'Harare', 'Zimbabwe'),
            (5, 'lena', 'Lena', 'Müller-Ncube', true, true, false,
                '+49 30 1234567', '1985-07-15', 'female', '5 Second Street, Gweru',
                'Gweru', 'Zimbabwe'),
            (6, 'olga', 'Ольга', 'Okafor', true, true, false,
                '', '1990-01-01', '', '', 'Harare', 'Zimbabwe'),
            (7, 'nobody', 'No', 'Body', true, false, false,
                null, null, null, null, null, null),
            (8, 'locked', 'Locked', 'Out', false, true, false,
                null, null, null, null, null, null),
            (9, 'leaving', 'Lea', 'Ving', false, true, false,
                '+263 77 100 0009', '1991-05-05', 'other', '9 Last Street, Mutare',
                'Mutare', 'Zimbabwe')
      ) as account (
        id, username, first_name, last_name, is_active, is_staff, is_superuser, phone, born,
        gender, address, city, country
      )
     cross join sample_settings
  ) as account
 order by id;

-- An account with null in every column that allows it, age and activity included.
insert into users (
    id, username, email, password, first_name, last_name, is_active, is_staff, is_superuser,
    date_joined, last_login
)
values (10, 'nulls', 'nulls@tesc.example', '!', null, null, null, null, null, null, null);

insert into users (
    id, username, email, password, first_name, last_name, is_active, is_staff, is_superuser,
    date_joined, last_login, phone_number, date_of_birth, gender, address, city, country
)
select
    id,
    username,
    username || '@staff.tesc.example',
    pg_temp.password(id),
    pg_temp.given_name(id, gender),
    family_name,
    not pg_temp.chance('inactive ', id, 50),
    true,
    false,
    pg_temp.moment('joined ', id, joined),
    case
        when pg_temp.chance('never seen ', id, 950)
            then pg_temp.moment('last login ', id, today - 1 - pg_temp.pick('seen ', id, 90))
    end,
    pg_temp.phone_number(id),
    joined - 9000 - pg_temp.pick('born ', id, 9000),
    gender,
    pg_temp.address(id, pg_temp.city(id)),
    pg_temp.city(id),
    'Zimbabwe'
  from (
    select
        id,
        today,
        (array['female', 'male'])[1 + pg_temp.pick('gender ', id, 2)] as gender,
        pg_temp.family_name(id) as family_name,
        regexp_replace(lower(pg_temp.family_name(id)), '[^a-z]', '', 'g') || id::text as username,
        today - 2930 - pg_temp.pick('joined ', id, 360) as joined
      from sample_settings
     cross join generate_series(101, 100 + least(800, greatest(40, students / 50))) as id
  ) as lecturer
 order by id;

insert into user_roles (id, user_id, role_id, created_at)
select row_number() over (order by users.id, roles.id), users.id, roles.id, users.date_joined
  from (
    select 1 as user_id, 'admin' as role
    union all values
        (2, 'analyst'), (3, 'registrar'), (4, 'auditor'), (5, 'lecturer'),
        (5, 'head_of_department'), (6, 'operator'), (8, 'analyst'), (9, 'analyst')
    union all
    select id, 'lecturer' from users where id between 101 and 1000
    union all
    -- Department n is headed by lecturer 100 + n (30_catalogue.sql): 1 by lena, 14 by nobody.
    select id, 'head_of_department' from users where id between 102 and 127 and id <> 114
  ) as held
  join users on users.id = held.user_id
  join roles on roles.name = held.role;
