-- Sixteen academic sessions, two a year: the first starts on the first Monday of February, the
-- second on that of August. Session 16 is the one that started last on sample.today, and the
-- only current one, whether or not its last day has passed.

insert into academic_sessions (
    id, name, code, start_date, end_date, is_current, created_at, updated_at
)
select
    id,
    'Semester ' || half || ', ' || year,
    year || 'S' || half,
    start_date,
    -- A Friday: 23 weeks with the winter holidays, 19 without.
    start_date + case half when 1 then 158 else 130 end,
    id = 16,
    pg_temp.moment('session ', id, start_date - 200),
    pg_temp.moment('session change ', id, start_date)
  from (
    select
        17 - row_number() over (order by start_date desc) as id,
        year,
        half,
        start_date
      from sample_settings
     cross join lateral generate_series(
        extract(year from today)::integer - 9, extract(year from today)::integer
     ) as year
     cross join (values (1, 2), (2, 8)) as halves (half, month)
     cross join lateral (select make_date(year, month, 1) as first) as month_start
     cross join lateral (
        select first + (8 - extract(isodow from first)::integer) % 7 as start_date
     ) as start
     where start_date <= today
  ) as session
 where id >= 1
 order by id;
