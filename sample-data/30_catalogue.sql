-- What can be studied where: institutions, faculties, departments, programmes, 690 courses and
-- their prerequisites. The same for every size.

insert into institutions (
    id, name, code, type, address, city, country, postal_code, phone, email, website, logo,
    created_at, updated_at
)
select institution.*, created_at, created_at + interval '400 days'
  from (
    values
        (1, 'Savanna State University', 'SSU', 'University',
            E'1 University Drive\nMount Pleasant\nHarare', 'Harare', 'Zimbabwe', null,
            '+263 24 230 3211', 'info@ssu.example', 'https://www.ssu.example', 'logos/ssu.png'),
        (2, 'Matobo Polytechnic', 'MPOLY', 'Polytechnic',
            'Corner of 12th Avenue & Park Road, Bulawayo', 'Bulawayo', 'Zimbabwe', '',
            '029 226 3371', 'registry@mpoly.example', 'https://mpoly.example', null),
        (3, 'Nyanga Teachers'' College', 'NTC', 'Teachers'' college',
            null, 'Nyanga', 'Zimbabwe', null, null, null, null, null),
        (4, 'Zambezi Institute of Technology, Hwange', 'ZIT', null,
            'Private Bag 5701, "The Old Colliery", Hwange', 'Hwange', 'Zimbabwe', '00263',
            '+263 81 282 0000', 'hello@zit.example', '', '')
  ) as institution (
    id, name, code, type, address, city, country, postal_code, phone, email, website, logo
  )
 cross join lateral (
    select pg_temp.moment('institution ', id, today - 3400) as created_at from sample_settings
  ) as at
 order by id;

-- Two faculties share a code in different institutions; one has no departments yet.
insert into faculties (id, institution_id, name, code, description, created_at, updated_at)
select faculty.*, created_at, created_at
  from (
    values
        (1, 1, 'Faculty of Engineering and Computing', 'ENG', 'Est. 1980.'),
        (2, 1, 'Faculty of Commerce', 'COM', null),
        (3, 1, 'Faculty of Health Sciences', 'HSC',
            E'Teaching hospital: "Parirenyatwa".\nSee below.'),
        (4, 1, 'Faculty of Agriculture', 'AGR', ''),
        (5, 1, 'Faculty of Arts, Law & Humanities', 'ART', null),
        (6, 2, 'School of Engineering', 'ENG', 'Workshops, laboratories and a foundry'),
        (7, 2, 'School of Business', 'BUS', null),
        (8, 3, 'Primary Education', 'PRI', null),
        (9, 3, 'Secondary Education', 'SEC', ''),
        (10, 4, 'School of Mines and Energy', 'MIN', null),
        (11, 4, 'School of Tourism, Hospitality & Wildlife', 'THW', null),
        (12, 4, 'Graduate School', 'GRD', 'Opens next year; no departments yet')
  ) as faculty (id, institution_id, name, code, description)
 cross join lateral (
    select pg_temp.moment('faculty ', id, today - 3390) as created_at from sample_settings
  ) as at
 order by id;

-- `field` chooses the subjects that a department's courses are about.
create temp table sample_departments (
    id integer,
    faculty_id integer,
    name text,
    code text,
    field text
) on commit drop;

insert into sample_departments (id, faculty_id, name, code, field)
values
    (1, 1, 'Computer Science', 'CSC', 'computing'),
    (2, 1, 'Electrical Engineering', 'ELE', 'engineering'),
    (3, 1, 'Civil Engineering', 'CIV', 'engineering'),
    (4, 2, 'Accounting', 'ACC', 'business'),
    (5, 2, 'Marketing', 'MKT', 'business'),
    (6, 2, 'Economics', 'ECO', 'business'),
    (7, 3, 'Nursing', 'NUR', 'health'),
    (8, 3, 'Pharmacy', 'PHA', 'health'),
    (9, 3, 'Public Health', 'PUB', 'health'),
    (10, 4, 'Crop Science', 'CRP', 'agriculture'),
    (11, 4, 'Animal Science', 'ANI', 'agriculture'),
    (12, 5, 'African Languages & Literature', 'LIT', 'arts'),
    (13, 5, 'History', 'HIS', 'arts'),
    (14, 5, 'Law', 'LAW', 'arts'),
    (15, 6, 'Mechanical Engineering', 'MEC', 'engineering'),
    (16, 6, 'Electrical Engineering', 'ELE', 'engineering'),
    (17, 6, 'Information and Communication Technology', 'ICT', 'computing'),
    (18, 7, 'Accountancy', 'ACC', 'business'),
    (19, 7, 'Human Resources', 'HRM', 'business'),
    (20, 8, 'Early Childhood Development', 'ECD', 'education'),
    (21, 8, 'Primary Teaching', 'PRM', 'education'),
    (22, 9, 'Science Teaching', 'SCT', 'education'),
    (23, 9, 'Teaching of Humanities', 'HUM', 'education'),
    (24, 10, 'Mining Engineering', 'MNE', 'engineering'),
    (25, 10, 'Renewable Energy', 'REN', 'engineering'),
    (26, 11, 'Tourism and Hospitality', 'TOU', 'business'),
    (27, 11, 'Wildlife Management', 'WLD', 'agriculture'),
    -- No programmes.
    (28, 5, 'Music — Mbira, Marimba, "Voice"', 'MUS', 'arts');

insert into departments (
    id, faculty_id, name, code, head_of_department_id, description, created_at, updated_at
)
select
    id, faculty_id, name, code,
    case when id = 1 then 5 when id not in (14, 28) then 100 + id end,
    case when pg_temp.chance('department described ', id, 600)
        then 'The department of ' || name || E'.\nOffice hours: 8–16, "by appointment".'
    end,
    created_at,
    created_at + interval '1 day' * pg_temp.pick('department changed ', id, 2000)
  from sample_departments
 cross join lateral (
    select pg_temp.moment('department ', id, today - 3380) as created_at from sample_settings
  ) as at
 order by id;

-- Three courses a semester, 60 credits between them.
insert into programs (
    id, department_id, name, code, description, duration_years, total_credits, degree_type,
    is_active, created_at, updated_at
)
select
    id, department_id, name, code,
    case pg_temp.pick('program described ', id, 4)
        when 0 then null
        when 1 then ''
        else name || E':\n- ' || years || E' years\n- "full time", part time on request'
    end,
    years, 120 * years, degree_type, is_active, created_at, created_at
  from (
    values
        (1, 1, 'BSc Honours in Computer Science', 'HCS', 4, 'Bachelor', true),
        (2, 1, 'MSc in Data Science', 'MDS', 2, 'Master', true),
        (3, 2, 'BEng Honours in Electrical Engineering', 'HEE', 4, 'Bachelor', true),
        (4, 3, 'BEng Honours in Civil Engineering', 'HCE', 4, 'Bachelor', true),
        (5, 4, 'BCom Honours in Accounting', 'HAC', 4, 'Bachelor', true),
        (6, 4, 'MCom in Accounting, Auditing & Tax', 'MAC', 2, 'Master', true),
        (7, 5, 'BCom Honours in Marketing', 'HMK', 4, 'Bachelor', true),
        (8, 6, 'BSc Honours in Economics', 'HEC', 4, 'Bachelor', true),
        (9, 7, 'BSc Honours in Nursing', 'HNU', 4, 'Bachelor', true),
        (10, 8, 'Bachelor of Pharmacy', 'HPH', 4, 'Bachelor', true),
        (11, 9, 'Master of Public Health', 'MPH', 2, 'Master', true),
        (12, 10, 'BSc Honours in Crop Science', 'HCR', 4, 'Bachelor', true),
        (13, 11, 'BSc Honours in Animal Science', 'HAN', 4, 'Bachelor', true),
        (14, 12, 'BA Honours in ChiShona, isiNdebele & Literature', 'HLL', 4, 'Bachelor', true),
        (15, 13, 'BA Honours in History', 'HHI', 4, 'Bachelor', true),
        (16, 14, 'Bachelor of Laws', 'LLB', 4, 'Bachelor', true),
        (17, 15, 'National Diploma in Mechanical Engineering', 'NDM', 3, 'Diploma', true),
        (18, 15, 'National Certificate in Welding', 'NCW', 2, 'Certificate', true),
        (19, 16, 'National Diploma in Electrical Power', 'NDE', 3, 'Diploma', true),
        (20, 17, 'National Diploma in ICT', 'NDI', 3, 'Diploma', true),
        (21, 17, 'National Certificate in ICT', 'NCI', 2, 'Certificate', true),
        (22, 18, 'National Diploma in Accountancy', 'NDA', 3, 'Diploma', true),
        (23, 19, 'National Diploma in Human Resources', 'NDH', 3, 'Diploma', true),
        (24, 20, 'Diploma in Education (Early Childhood)', 'DEC', 3, 'Diploma', true),
        (25, 21, 'Diploma in Education (Primary)', 'DEP', 3, 'Diploma', true),
        (26, 22, 'Diploma in Education (Science)', 'DES', 3, 'Diploma', true),
        (27, 22, 'Bachelor of Education in Science', 'BES', 4, 'Bachelor', true),
        (28, 23, 'Diploma in Education (Humanities)', 'DEH', 3, 'Diploma', true),
        (29, 24, 'BTech Honours in Mining Engineering', 'HMN', 4, 'Bachelor', true),
        (30, 25, 'BTech Honours in Renewable Energy', 'HRE', 4, 'Bachelor', true),
        (31, 25, 'Certificate in Solar Installation', 'CSI', 2, null, true),
        (32, 26, 'National Diploma in Tourism', 'NDT', 3, 'Diploma', true),
        (33, 27, 'National Diploma in Wildlife Management', 'NDW', 3, 'Diploma', true),
        -- Closed to new students half-way through the eight years.
        (34, 26, 'Certificate in "Bread & Pastry"', 'CBP', 2, '', false),
        -- Courses, but no students.
        (35, 13, 'BA Honours in Archaeology', 'HAR', 4, 'Bachelor', true),
        -- Planned: neither courses nor students.
        (36, 10, 'Diploma in Soil Science', 'DSS', 3, 'Diploma', false)
  ) as program (id, department_id, name, code, years, degree_type, is_active)
 cross join lateral (
    select pg_temp.moment('program ', id, today - 3300) as created_at from sample_settings
  ) as at
 order by id;

create temp table sample_subjects (
    field text,
    subjects text[]
) on commit drop;

insert into sample_subjects (field, subjects)
values
    ('computing', array[
        'Programming', 'Discrete Mathematics', 'Computer Architecture', 'Databases',
        'Networks', 'Algorithms & Data Structures', 'Operating Systems', 'Statistics',
        'Software Engineering', 'Human–Computer Interaction', 'Security, Law and Ethics', 'C++'
    ]),
    ('engineering', array[
        'Engineering Mathematics', 'Mechanics', 'Materials', 'Technical Drawing',
        'Thermodynamics', 'Circuits', 'Fluid Mechanics', 'Control', 'Project Management',
        'Surveying', 'Health, Safety & Environment', 'Workshop Practice'
    ]),
    ('business', array[
        'Financial Accounting', 'Microeconomics', 'Business Law', 'Marketing',
        'Quantitative Methods', 'Macroeconomics', 'Taxation', 'Auditing',
        'Organisational Behaviour', 'Entrepreneurship', 'Costing, Budgeting and Control',
        'Strategy: "From Plan to Practice"'
    ]),
    ('health', array[
        'Anatomy', 'Physiology', 'Biochemistry', 'Pharmacology', 'Microbiology',
        'Epidemiology', 'Community Health', 'Pathology', 'Clinical Practice',
        'Health Informatics', 'Mother, Child & Family', 'Ethics in Care'
    ]),
    ('agriculture', array[
        'Botany', 'Soil Science', 'Genetics', 'Agricultural Economics', 'Irrigation',
        'Animal Nutrition', 'Plant Protection', 'Ecology', 'Farm Management',
        'Climate and Weather', 'Pastures, Veld & Rangeland', 'Field Practice'
    ]),
    ('arts', array[
        'Introduction to Theory', 'Oral Literature', 'Archives and Sources', 'Pre-colonial Africa',
        'Linguistics', 'Criticism', 'Constitutional Studies', 'Colonial Encounters', 'Rhetoric',
        'World History', 'Women, Gender and Society', 'Research Methods'
    ]),
    ('education', array[
        'Pedagogy', 'Child Psychology', 'Curriculum', 'Classroom Management', 'Assessment',
        'Sociology of Education', 'Inclusive Education', 'ICT in Teaching', 'ChiShona',
        'isiNdebele', 'Music, Art & Play', 'Teaching Practice'
    ]);

-- Where each programme's courses begin: course ids run on through the programmes, so that
-- course n of a programme is first_course_id + n - 1 and is taken in semester (n + 2) / 3.
create temp table sample_programs on commit drop as
select
    programs.id,
    2 * duration_years as semesters,
    field,
    1 + coalesce(
        sum(6 * duration_years) over (
            order by programs.id rows between unbounded preceding and 1 preceding
        ), 0
    )::integer as first_course_id
  from programs
  join sample_departments on sample_departments.id = programs.department_id
 where programs.id <= 35;

create temp table sample_courses on commit drop as
select
    first_course_id + position - 1 as id,
    sample_programs.id as program_id,
    position,
    (position + 2) / 3 as semester,
    field
  from sample_programs
 cross join lateral generate_series(1, 3 * semesters) as position;

insert into courses (
    id, program_id, code, name, description, credits, hours_per_week, is_core, is_active,
    created_at, updated_at
)
select
    course.id,
    program_id,
    -- Year, semester of the year, running number: HCS1203.
    programs.code || ((semester + 1) / 2)::text || (2 - semester % 2)::text
        || lpad(position::text, 2, '0'),
    subjects[1 + (position - 1) % 12] || case when position > 12 then ' II' else ' I' end,
    case pg_temp.pick('course described ', course.id, 5)
        when 0 then null
        when 1 then ''
        when 2 then E'First part\n\nSecond part: "quoted", with a comma; and a tab:\there.'
        else 'Lectures, tutorials and a project in ' || subjects[1 + (position - 1) % 12] || '.'
    end,
    (array[15, 20, 25])[1 + position % 3],
    case when not pg_temp.chance('hours unknown ', course.id, 60)
        then 2 + pg_temp.pick('hours ', course.id, 5)
    end,
    not pg_temp.chance('elective ', course.id, 150),
    not pg_temp.chance('withdrawn course ', course.id, 30),
    programs.created_at,
    programs.created_at + interval '1 day' * pg_temp.pick('course changed ', course.id, 3000)
  from sample_courses as course
  join programs on programs.id = program_id
  join sample_subjects on sample_subjects.field = course.field
 order by course.id;

-- A prerequisite is always an earlier course of the same programme, hence never in a cycle.
insert into course_prerequisites (id, course_id, prerequisite_course_id, created_at)
select row_number() over (order by course_id, required_id), course_id, required_id, created_at
  from (
    select id as course_id, id - 12 as required_id from sample_courses where position > 12
    union
    select id, id - 3
      from sample_courses
     where position > 3 and pg_temp.chance('follows ', id, 400)
    union
    select id, id - 3 - position % 3
      from sample_courses
     where semester > 2 and pg_temp.chance('also follows ', id, 100)
  ) as requirement
  join courses on courses.id = course_id;

analyze sample_programs, sample_courses;
