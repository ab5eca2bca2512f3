//! The tables and the query: ten columns of as many types, from a join of five tables.

/// Makes the tables with `rows` enrolments in courses. Nothing is random: every run of every
/// version reads the same values.
pub fn tables(rows: u64) -> String {
    let students = (rows / 20).max(1_000);
    let enrollments = (rows / 10).max(1_000);
    format!(
        "set client_min_messages = warning;
drop schema if exists bench cascade;
create schema bench;
set search_path = bench;
create function pick(seed bigint, salt integer, choices text[]) returns text language sql immutable
    return choices[1 + abs(hashint8extended(seed, salt) % cardinality(choices))];
create table programs (id integer primary key, name varchar(255) not null);
insert into programs
select n, pick(n, 1, '{{BSc,BA,MSc,Diploma}}') || ' ' ||
       pick(n, 2, '{{Computing,\"Food, Soil and Water\",Nursing,Design,Éducation}}') || ' ' || n
  from generate_series(1, 60) n;
create table courses (id integer primary key, details jsonb not null);
insert into courses
select n, jsonb_build_object('code', 'C' || n, 'credits', 2 + n % 5,
                             'core', n % 3 = 0, 'room', pick(n, 3, '{{A,B,C,Hall}}') || n % 40)
  from generate_series(1, 1500) n;
create table students (id integer primary key, username varchar(150) not null);
insert into students
select n, pick(n, 4, '{{ana,bo,chidi,dineo,eva,kabo,lesego,thato}}') || '.' ||
          pick(n, 5, '{{moyo,smith,kgosi,tau,molefe,okafor}}') || n
  from generate_series(1, {students}) n;
create table enrollments (id integer primary key, student_id integer not null,
                          program_id integer not null);
insert into enrollments
select n, 1 + abs(hashint8extended(n, 6) % {students}), 1 + abs(hashint8extended(n, 7) % 60)
  from generate_series(1, {enrollments}) n;
create table course_enrollments (
    id integer primary key, reference bigint not null, enrollment_id integer not null,
    course_id integer not null, grade_points numeric(3,2), comment text not null,
    enrollment_date date not null, created_at timestamptz not null, passed boolean not null);
insert into course_enrollments
select n, 20240000000 + n * 7, 1 + abs(hashint8extended(n, 8) % {enrollments}),
       1 + abs(hashint8extended(n, 9) % 1500),
       case when hashint8extended(n, 10) % 100 between -4 and 4 then null
            else round((abs(hashint8extended(n, 11) % 401) / 100.0)::numeric, 2) end,
       case n % 80
            when 0 then 'said \"well done\", twice'
            when 20 then 'first, second, third'
            when 40 then E'two\\nlines'
            when 60 then 'naïve café — ☕ 北京'
            else pick(n, 12, '{{good,steady,weak,excellent,late,absent}}') || ' ' ||
                 pick(n, 13, '{{work,progress,effort,attendance,results}}') || ' in ' ||
                 pick(n, 14, '{{spring,autumn,the first half,the last weeks}}') || ' ' || n % 977
       end,
       date '2015-01-01' + (n % 3650)::integer,
       timestamptz '2015-01-01 08:00:00+00' + n * interval '283.000017 seconds',
       n % 7 <> 0
  from generate_series(1, {rows}) n;"
    )
}

/// What brings new tables into the state of old ones. Neither may stand in a transaction.
pub const SETTLE: [&str; 2] = [
    "vacuum (freeze, analyze) bench.programs, bench.courses, bench.students, bench.enrollments, \
     bench.course_enrollments",
    "checkpoint",
];

/// What everybody runs, on one line because `\copy` reads no further.
pub fn query(rows: u64) -> String {
    format!(
        "select ce.id, ce.reference, ce.grade_points, s.username, ce.comment, \
         ce.enrollment_date, ce.created_at, ce.passed, c.details, p.name as program \
         from bench.course_enrollments ce \
         join bench.enrollments e on e.id = ce.enrollment_id \
         join bench.students s on s.id = e.student_id \
         join bench.courses c on c.id = ce.course_id \
         join bench.programs p on p.id = e.program_id \
         where ce.id <= {rows}"
    )
}
