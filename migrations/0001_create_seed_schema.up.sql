-- Creates the TESC schema as its documentation gives it: the tables, columns, order, types
-- and names an existing TESC database has, so that every later migration applies to one.
--
-- Mended, because PostgreSQL rejects it or it contradicts itself:
-- 1. enrollments: `unique (…) where status = 'active'` is not a table constraint. It is a
--    partial unique index here, under the name the constraint would have been given.
-- 2. idx_audit_logs_created_at is declared twice; it is created once.
-- Nothing else is changed. In particular:
-- * Four recommended indexes add nothing that a unique constraint does not answer already:
--   idx_users_email and idx_users_username repeat one, idx_course_enrollments_enrollment
--   and idx_project_members_project are the first column of one. They are kept, because
--   databases built from the documentation have them, and the last two are much smaller
--   than the constraint's index.
-- * Statuses stay free text and created_at stays nullable: code must cope with both.
-- * Foreign keys stay without indexes of their own here; 0002 adds those.
--
-- Down: drops every table. ALL DATA IS LOST.

create table users (
    id serial primary key,
    username varchar(150) unique not null,
    email varchar(254) unique not null,
    password varchar(128) not null,
    first_name varchar(30),
    last_name varchar(150),
    is_active boolean default true,
    is_staff boolean default false,
    is_superuser boolean default false,
    date_joined timestamp with time zone default current_timestamp,
    last_login timestamp with time zone,
    phone_number varchar(20),
    date_of_birth date,
    gender varchar(10),
    profile_picture varchar(255),
    address text,
    city varchar(100),
    country varchar(100),
    postal_code varchar(20)
);

create table roles (
    id serial primary key,
    name varchar(100) unique not null,
    description text,
    created_at timestamp with time zone default current_timestamp,
    updated_at timestamp with time zone default current_timestamp
);

create table permissions (
    id serial primary key,
    codename varchar(100) unique not null,
    name varchar(255) not null,
    content_type_id integer,
    created_at timestamp with time zone default current_timestamp
);

create table user_roles (
    id serial primary key,
    user_id integer references users(id) on delete cascade,
    role_id integer references roles(id) on delete cascade,
    created_at timestamp with time zone default current_timestamp,
    unique(user_id, role_id)
);

create table role_permissions (
    id serial primary key,
    role_id integer references roles(id) on delete cascade,
    permission_id integer references permissions(id) on delete cascade,
    created_at timestamp with time zone default current_timestamp,
    unique(role_id, permission_id)
);

create table institutions (
    id serial primary key,
    name varchar(255) not null,
    code varchar(50) unique not null,
    type varchar(100),
    address text,
    city varchar(100),
    country varchar(100),
    postal_code varchar(20),
    phone varchar(20),
    email varchar(254),
    website varchar(255),
    logo varchar(255),
    created_at timestamp with time zone default current_timestamp,
    updated_at timestamp with time zone default current_timestamp
);

create table faculties (
    id serial primary key,
    institution_id integer references institutions(id) on delete cascade,
    name varchar(255) not null,
    code varchar(50) not null,
    description text,
    created_at timestamp with time zone default current_timestamp,
    updated_at timestamp with time zone default current_timestamp,
    unique(institution_id, code)
);

create table departments (
    id serial primary key,
    faculty_id integer references faculties(id) on delete cascade,
    name varchar(255) not null,
    code varchar(50) not null,
    head_of_department_id integer references users(id) on delete set null,
    description text,
    created_at timestamp with time zone default current_timestamp,
    updated_at timestamp with time zone default current_timestamp,
    unique(faculty_id, code)
);

create table programs (
    id serial primary key,
    department_id integer references departments(id) on delete cascade,
    name varchar(255) not null,
    code varchar(50) not null,
    description text,
    duration_years integer not null,
    total_credits integer not null,
    degree_type varchar(100),
    is_active boolean default true,
    created_at timestamp with time zone default current_timestamp,
    updated_at timestamp with time zone default current_timestamp,
    unique(department_id, code)
);

create table courses (
    id serial primary key,
    program_id integer references programs(id) on delete cascade,
    code varchar(50) not null,
    name varchar(255) not null,
    description text,
    credits integer not null,
    hours_per_week integer,
    is_core boolean default true,
    is_active boolean default true,
    created_at timestamp with time zone default current_timestamp,
    updated_at timestamp with time zone default current_timestamp,
    unique(program_id, code)
);

create table course_prerequisites (
    id serial primary key,
    course_id integer references courses(id) on delete cascade,
    prerequisite_course_id integer references courses(id) on delete cascade,
    created_at timestamp with time zone default current_timestamp,
    unique(course_id, prerequisite_course_id)
);

create table academic_sessions (
    id serial primary key,
    name varchar(100) not null,
    code varchar(50) unique not null,
    start_date date not null,
    end_date date not null,
    is_current boolean default false,
    created_at timestamp with time zone default current_timestamp,
    updated_at timestamp with time zone default current_timestamp
);

create table enrollments (
    id serial primary key,
    student_id integer references users(id) on delete cascade,
    program_id integer references programs(id) on delete cascade,
    enrollment_date date not null,
    completion_date date,
    status varchar(50) not null, -- 'active', 'completed', 'withdrawn', etc.
    created_at timestamp with time zone default current_timestamp,
    updated_at timestamp with time zone default current_timestamp
);

-- Mend 1: a student is active in a programme once, but may have left it any number of times.
create unique index enrollments_student_id_program_id_status_key
    on enrollments (student_id, program_id, status)
    where status = 'active';

create table course_enrollments (
    id serial primary key,
    enrollment_id integer references enrollments(id) on delete cascade,
    course_id integer references courses(id) on delete cascade,
    academic_session_id integer references academic_sessions(id) on delete cascade,
    enrollment_date date not null,
    status varchar(50) not null, -- 'enrolled', 'completed', 'dropped', etc.
    grade varchar(2),
    grade_points decimal(3,2),
    created_at timestamp with time zone default current_timestamp,
    updated_at timestamp with time zone default current_timestamp,
    unique(enrollment_id, course_id, academic_session_id)
);

create table innovation_projects (
    id serial primary key,
    title varchar(255) not null,
    description text,
    problem_statement text,
    objectives text,
    expected_outcomes text,
    -- 'draft', 'submitted', 'in_review', 'approved', 'rejected', 'in_progress', 'completed'
    status varchar(50) not null,
    start_date date,
    end_date date,
    created_by integer references users(id) on delete set null,
    created_at timestamp with time zone default current_timestamp,
    updated_at timestamp with time zone default current_timestamp
);

create table project_members (
    id serial primary key,
    project_id integer references innovation_projects(id) on delete cascade,
    user_id integer references users(id) on delete cascade,
    role varchar(100) not null, -- 'leader', 'member', 'mentor', 'advisor'
    joined_date date not null,
    left_date date,
    created_at timestamp with time zone default current_timestamp,
    unique(project_id, user_id, role)
);

create table project_milestones (
    id serial primary key,
    project_id integer references innovation_projects(id) on delete cascade,
    title varchar(255) not null,
    description text,
    due_date date not null,
    completed_date date,
    status varchar(50) not null, -- 'pending', 'in_progress', 'completed', 'delayed'
    created_at timestamp with time zone default current_timestamp,
    updated_at timestamp with time zone default current_timestamp
);

create table report_definitions (
    id serial primary key,
    name varchar(255) not null,
    description text,
    query text not null,
    parameters jsonb,
    created_by integer references users(id) on delete set null,
    created_at timestamp with time zone default current_timestamp,
    updated_at timestamp with time zone default current_timestamp
);

create table report_executions (
    id serial primary key,
    report_definition_id integer references report_definitions(id) on delete cascade,
    executed_by integer references users(id) on delete set null,
    parameters jsonb,
    status varchar(50) not null, -- 'pending', 'processing', 'completed', 'failed'
    result_file_path varchar(512),
    error_message text,
    created_at timestamp with time zone default current_timestamp,
    completed_at timestamp with time zone
);

create table audit_logs (
    id serial primary key,
    user_id integer references users(id) on delete set null,
    action varchar(100) not null,
    entity_type varchar(100) not null,
    entity_id integer,
    old_values jsonb,
    new_values jsonb,
    ip_address inet,
    user_agent text,
    created_at timestamp with time zone default current_timestamp
);

create index idx_audit_logs_user_id on audit_logs(user_id);
create index idx_audit_logs_entity on audit_logs(entity_type, entity_id);
-- Mend 2: the documentation's last "recommended index" declares this one again.
create index idx_audit_logs_created_at on audit_logs(created_at);

create index idx_users_email on users(email);
create index idx_users_username on users(username);

create index idx_enrollments_student on enrollments(student_id, status);
create index idx_course_enrollments_enrollment on course_enrollments(enrollment_id);
create index idx_course_enrollments_course on course_enrollments(course_id);

create index idx_innovation_projects_status on innovation_projects(status);
create index idx_project_members_project on project_members(project_id);
create index idx_project_members_user on project_members(user_id);
